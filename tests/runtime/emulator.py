"""Runs the handler in AWS's runtime interface emulator."""

import contextlib
import importlib.util
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil

from infra.local import ROOT
from infra.local.server import free_port, wait_until

MACHINES = {"x86_64": "x86_64", "aarch64": "arm64"}


def binary() -> Path:
    """Find the emulator for this architecture in an installed package."""
    package = importlib.util.find_spec("samcli")
    assert package is not None, "no samcli: `make test` installs it"
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0])
    return folder / f"local/rapid/aws-lambda-rie-{MACHINES.get(platform.machine(), '')}"


class Emulator:
    """A running emulator. It supports one invocation at a time."""

    def __init__(self, process: "subprocess.Popen[bytes]", port: int) -> None:
        self._process = process
        self._url = f"http://127.0.0.1:{port}/2015-03-31/functions/function/invocations"

    def invoke(self, event: Any) -> Any:
        """Return the function's response, or the emulator's message as text after a timeout."""
        request = urllib.request.Request(self._url, json.dumps(event).encode())
        with urllib.request.urlopen(request, timeout=30) as response:
            content = response.read()
        try:
            return json.loads(content)
        except ValueError:
            return content.decode()

    @property
    def runtime(self) -> psutil.Process:
        """The handler's process, which starts with the first event."""
        [child] = psutil.Process(self._process.pid).children()
        return child

    def shut_down(self) -> float:
        """Send SIGTERM to the emulator; return the seconds until the handler's process ended."""
        runtime, started = self.runtime, time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        assert wait_until(lambda: not _runs(runtime), 30)
        return time.monotonic() - started


def _runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def _listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


@contextlib.contextmanager
def emulator(environment: dict[str, str], log: Path, seconds: int = 10) -> Iterator[Emulator]:
    """Run an emulator for the block; `seconds` is the function's timeout, `log` its output."""
    program, port, api_port = binary(), free_port(), free_port()
    program.chmod(0o755)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [
                str(program),
                *("--runtime-interface-emulator-address", f"127.0.0.1:{port}"),
                *("--runtime-api-address", f"127.0.0.1:{api_port}"),
                *(sys.executable, "-m", "awslambdaric", "handler.main.handler"),
            ],
            cwd=ROOT,
            env={**os.environ, **environment, "AWS_LAMBDA_FUNCTION_TIMEOUT": str(seconds)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        assert wait_until(lambda: _listens(port), 30), log.read_text()
        yield Emulator(process, port)
    finally:
        for child in psutil.Process(process.pid).children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # it has exited
                child.kill()
        process.kill()
        process.wait()
