"""The command that runs the runtime client with a sandbox's interpreter."""

import subprocess
import sys
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from infra.local import LabError

Mode = Literal["check", "start", "snapshot", "fork-server"]

_CLIENT = Path(__file__).with_name("client.py")


def client_command(python: str, mode: Mode, handler: str) -> list[str]:
    """Return the command that runs `client`. Raises LabError if the interpreter cannot run it."""
    if python != sys.executable and (reason := _unusable_reason(python)):
        raise LabError(reason)
    return [python, str(_CLIENT), mode, _packages(), handler]


@cache
def _packages() -> str:
    """Return the folder of packages that contains the runtime client."""
    spec = find_spec("awslambdaric")
    if spec is None or spec.origin is None:
        raise LabError("awslambdaric is not installed. Run: make demo")
    return str(Path(spec.origin).parents[1])


@cache
def _unusable_reason(python: str) -> str | None:
    """Return why the interpreter cannot run a sandbox, or None if it can."""
    try:
        command = [python, str(_CLIENT), "check", _packages(), ""]
        result = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"{python} does not run: {error}"
    if result.returncode == 0:
        return None
    last_line = (result.stderr.strip().splitlines() or ["no output"])[-1]
    if "ModuleNotFoundError" in last_line:
        return (
            f"{python} has no awslambdaric, and the lab's is for Python"
            f" {sys.version_info.major}.{sys.version_info.minor}. Run: {python} -m pip install"
            " awslambdaric"
        )
    return f"{python} cannot run the runtime client: {last_line}"
