"""Starts the real runtime client in a sandbox: `python client.py MODE FOLDER HANDLER`.

The interpreter and the current folder may be another service's, with its own `handler` and `infra`,
so this file imports only the standard library. `FOLDER` has the lab's packages, from which an
interpreter without a runtime client gets one, as from a Lambda base image.
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

#: The runtime client and its dependencies.
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
    """Raise ImportError if the runtime client cannot be imported."""
    importlib.import_module("awslambdaric")
    importlib.import_module("runtime_client")  # compiled for one version of Python


def _start(handler: str) -> None:
    sys.argv = ["awslambdaric", handler]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


def _snapshot(handler: str) -> None:
    """Emulate SnapStart: for each response to `restore/next`, a forked child continues.

    Unlike in a micro-VM, threads and state outside of Python are lost.
    """
    import random

    from awslambdaric.lambda_runtime_client import LambdaRuntimeClient

    wait_for_restore = LambdaRuntimeClient.restore_next

    def restore_next(client: Any) -> None:
        while True:
            wait_for_restore(client)
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
    empty_input = os.open(os.devnull, os.O_RDONLY)
    for descriptor, standard in ((empty_input, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, standard)
    os.environ.clear()
    os.environ.update(request["environment"])
    gc.enable()
    _start(request["handler"])


def _fork_server(_: str) -> None:
    """Fork a sandbox for each line of JSON on stdin, and report starts and exits on stdout.

    At the end of the input, kill the remaining sandboxes.
    """
    gc.disable()
    reports = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # packages may print to stdout
    for name in PRELOADED:
        with contextlib.suppress(Exception):  # missing or broken
            importlib.import_module(name)
    gc.freeze()  # so that collections in a child do not copy shared pages
    child_exited, wakeup = os.pipe()
    os.set_blocking(wakeup, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # after Ctrl-C the parent closes stdin
    signal.set_wakeup_fd(wakeup)
    alive: set[int] = set()
    stdin_open = True
    while stdin_open or alive:
        ready = select.select([child_exited, 0] if stdin_open else [child_exited], [], [])[0]
        if child_exited in ready:
            os.read(child_exited, 1024)
            _reap(alive, reports)
        if 0 not in ready:
            continue
        if (request := _read_request()) is None:
            stdin_open = False
            for pid in alive:
                os.kill(pid, signal.SIGKILL)
        elif pid := os.fork():
            alive.add(pid)
            print(json.dumps({"pid": pid}), file=reports, flush=True)
        else:
            reports.close()
            _run_forked(request)


def _reap(alive: set[int], reports: IO[str]) -> None:
    while alive:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        alive.discard(pid)
        report = {"pid": pid, "status": os.waitstatus_to_exitcode(status)}
        print(json.dumps(report), file=reports, flush=True)


def _read_request() -> dict[str, Any] | None:
    """Read a line, or return None at the end of the input.

    It reads single bytes, because `select` does not know of data in a buffer.
    """
    line = os.read(0, 1)
    while line and not line.endswith(b"\n"):
        line += os.read(0, 1)
    return dict(json.loads(line)) if line else None


def main() -> None:
    _, mode, folder, handler = sys.argv
    sys.path[0] = str(Path.cwd())  # instead of this file's folder
    sys.meta_path.append(_ClientFinder(folder))
    modes = {"start": _start, "snapshot": _snapshot, "fork-server": _fork_server, "check": _check}
    modes[mode](handler)


main()
