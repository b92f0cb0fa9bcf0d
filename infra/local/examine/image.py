"""A Lambda container image, unpacked so that the lab can freeze and end its processes as usual.

The emulator in a base image neither freezes nor ends a process, so it is not used: the image's own
interpreter and runtime client run in a root file system made of the image, with its environment.
"""

import contextlib
import json
import os
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infra.local import LabError, network
from infra.local.examine.inputs import DEFAULT_HANDLER, Inputs
from infra.local.fleet import interpreter

#: Directories of this machine that a sandbox sees: devices, processes, logs and the CA, the client.
SHARED = ("/dev", "/proc", tempfile.gettempdir(), str(Path(interpreter.__file__).parent))
#: A sandbox is this process from the start, so that a signal to it reaches the function.
WRAPPER = """\
#!/bin/sh
exec unshare --mount sh -c '{mounts} exec env {variables} {chroot} {root} \
sh -c "cd {task_root} && exec python3 \\"\\$@\\"" python3 "$@"' sh "$@"
"""


@dataclass(frozen=True)
class _Config:
    """The parts of an image's configuration that Lambda uses."""

    variables: dict[str, str]
    task_root: str
    handler: str


@contextlib.contextmanager
def unpacked(image: str, inputs: Inputs) -> Iterator[Inputs]:
    """Yield inputs that examine the function in a container image; remove its files afterwards.

    Raises LabError without an engine, the image, or the right to change the root directory.
    """
    if os.getuid() != 0 and not network.is_isolated():
        raise LabError("IMAGE needs root, or a kernel that allows user namespaces")
    config = _config(image)
    with tempfile.TemporaryDirectory(prefix="warm-engine-image-", ignore_cleanup_errors=True) as at:
        root = Path(at) / "root"
        root.mkdir()
        _unpack(image, root)
        for name in SHARED:
            (root / name.lstrip("/")).mkdir(parents=True, exist_ok=True)
        handler = inputs.handler if inputs.handler != DEFAULT_HANDLER else config.handler
        yield replace(
            inputs,
            handler=handler,
            root=root / config.task_root.lstrip("/"),
            python=str(_write_wrapper(Path(at) / "python", root, config)),
            variables=config.variables | dict(inputs.variables),
        )


def _docker(*words: str) -> str:
    if shutil.which("docker") is None:
        raise LabError("IMAGE needs the `docker` command. Install it, or use ROOT= and PYTHON=")
    done = subprocess.run(["docker", *words], capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"docker {words[0]}: {(done.stderr.strip().splitlines() or ['failed'])[-1]}")
    return done.stdout


def _config(image: str) -> _Config:
    config: dict[str, Any] = json.loads(_docker("image", "inspect", image))[0]["Config"]
    variables = dict(pair.split("=", 1) for pair in config.get("Env") or [])
    task_root = variables.get("LAMBDA_TASK_ROOT") or config.get("WorkingDir") or "/var/task"
    # Lambda's base images set the handler as the command, after their own entry point.
    handler = (config.get("Cmd") or [DEFAULT_HANDLER])[-1]
    return _Config(variables | {"LAMBDA_TASK_ROOT": task_root}, task_root, handler)


def _unpack(image: str, folder: Path) -> None:
    container = _docker("create", image).strip()
    try:
        with subprocess.Popen(["docker", "export", container], stdout=subprocess.PIPE) as export:
            tar = ["tar", "-x", "--no-same-owner", "--exclude=dev/*", "-C", str(folder)]
            done = subprocess.run(tar, stdin=export.stdout, capture_output=True, text=True)
        if done.returncode or export.returncode:
            raise LabError(f"the image cannot be unpacked: {done.stderr.strip()[-200:]}")
    finally:
        _docker("rm", container)


def _write_wrapper(path: Path, root: Path, config: _Config) -> Path:
    mounts = "".join(f"mount --rbind {name} {root}{name} && " for name in SHARED)
    # /var/runtime has the runtime client in Lambda's base images.
    variables = {"PATH": "/usr/bin:/bin", "PYTHONPATH": "/var/runtime"} | {
        name: config.variables[name]
        for name in ("PATH", "LD_LIBRARY_PATH", "PYTHONPATH")
        if name in config.variables
    }
    path.write_text(
        WRAPPER.format(
            mounts=mounts,
            variables=shlex.join(f"{name}={value}" for name, value in variables.items()),
            chroot=shutil.which("chroot") or "/usr/sbin/chroot",
            root=root,
            task_root=config.task_root,
        )
    )
    path.chmod(0o755)
    return path
