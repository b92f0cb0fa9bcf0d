"""Starts the real runtime client in a sandbox: `python client.py MODE FOLDER HANDLER`.

The interpreter and the current folder may be another service's, with its own `handler` and `infra`,
so it imports only the standard library and is never imported. `FOLDER` contains the runtime client
for interpreters without one, as a Lambda base image does.
"""

import contextlib
import gc
import importlib
import importlib.machinery
import json
import os
import runpy
import select
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

#: The runtime client and what it requires.
CLIENT_PACKAGES = ("awslambdaric", "runtime_client", "simplejson", "snapshot_restore_py")
#: Packages that a fork server imports, if the interpreter has them.
PRELOADED = ("asyncpg", "fastapi", "mangum", "pydantic_settings", "sqlalchemy.ext.asyncio")


class _ClientFinder:
    """Finds only the runtime client in the lab's packages."""

    def __init__(self, folder: str) -> None:
        self._folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in CLIENT_PACKAGES:
            return None
        return importlib.machinery.PathFinder.find_spec(name, [self._folder])


def _check(_: str) -> None:
    """Exit with status 0 if the runtime client can be imported."""
    import awslambdaric  # noqa: F401

    importlib.import_module("runtime_client")  # compiled, for one version of Python
    importlib.import_module("awslambdaric")


def _start(handler: str) -> None:
    sys.argv = ["awslambdaric", handler]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


def _snapshot(handler: str) -> None:
    """Emulate SnapStart: for each response to `restore/next`, a forked child continues.

    Unlike in a micro-VM, threads and state outside of Python are lost.
    """
    import random

    from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

    wait = LambdaRuntimeClient.restore_next

    def restore_next(client: Any) -> None:
        while True:
            wait(client)
            state = random.getstate()
            if os.fork() == 0:
                random.setstate(state)  # Python seeds again after a fork, a micro-VM does not
                return

    LambdaRuntimeClient.restore_next = restore_next
    _start(handler)


def _run_forked(request: dict[str, Any]) -> None:
    """Run the runtime client in the child like a newly started process."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(request["log"] or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    silence = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(ours, theirs)
    os.environ.clear()
    os.environ.update(request["environment"])
    gc.enable()
    _start(request["handler"])


def _report(reports: IO[str], **fields: int) -> None:
    print(json.dumps(fields), file=reports, flush=True)


def _fork_server(_: str) -> None:
    """Fork a sandbox for each line of JSON on stdin, and report starts and exits on stdout. At the
    end of the input kill those that are left."""
    gc.disable()
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages may print to stdout
    for name in PRELOADED:
        with contextlib.suppress(Exception):  # missing or broken
            importlib.import_module(name)
    gc.freeze()  # so that collections in a child do not copy shared pages
    exits, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent closes stdin
    signal.set_wakeup_fd(writing)
    alive: set[int] = set()
    is_open = True
    while is_open or alive:
        ready = select.select([exits, 0] if is_open else [exits], [], [])[0]
        if exits in ready:
            os.read(exits, 1024)
            _reap(alive, reports)
        if 0 not in ready:
            continue
        if (request := _read_request()) is None:
            is_open = False
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        elif pid := os.fork():
            alive.add(pid)
            _report(reports, pid=pid)
        else:
            reports.close()
            _run_forked(request)


def _reap(alive: set[int], reports: IO[str]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        alive.discard(pid)
        _report(reports, pid=pid, status=os.waitstatus_to_exitcode(status))


def _read_request() -> dict[str, Any] | None:
    """Read a line without a buffer, which `select` would not see; None at the end of the input."""
    line = os.read(0, 1)
    while line and not line.endswith(b"\n"):
        line += os.read(0, 1)
    return dict(json.loads(line)) if line else None


def main() -> None:
    _, mode, folder, handler = sys.argv
    # Instead of this file's folder, the default.
    sys.path[0] = str(Path.cwd())
    sys.meta_path.append(_ClientFinder(folder))
    modes = {"start": _start, "snapshot": _snapshot, "fork-server": _fork_server, "check": _check}
    modes[mode](handler)


main()
