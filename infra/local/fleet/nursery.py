"""Sandboxes that are forked from one process which has imported what a handler imports.

For fleets too large for this machine's cores: such a sandbox is ready in a fraction of the time,
which is no figure of a cold start. The runtime client and the handler itself are imported after the
fork, so everything that a handler does at its start still happens. Linux only.
"""

import asyncio
import gc
import json
import os
import runpy
import select
import signal
import sys
from pathlib import Path
from typing import Any, Self

from infra.local import ROOT

IMPORTED = ("asyncpg", "fastapi", "mangum", "pydantic_settings", "sqlalchemy.ext.asyncio")


class Forked:
    """As much of `asyncio.subprocess.Process` as a sandbox needs."""

    def __init__(self, pid: int, ended: "asyncio.Future[int]") -> None:
        self.pid = pid
        self._ended = ended

    async def wait(self) -> int:
        return await asyncio.shield(self._ended)


class Nursery:
    """`async with Nursery() as nursery:`, then `await nursery.fork(…)`."""

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            # Not by -m: it is imported with its package, of which Python would warn.
            *(sys.executable, "-c", f"from {__name__} import main; main()"),
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._born: asyncio.Queue[int] = asyncio.Queue()
        self._ended: dict[int, asyncio.Future[int]] = {}
        self._listening = asyncio.create_task(self._listen())
        self._one = asyncio.Lock()
        return self

    async def __aexit__(self, *error: object) -> None:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe, see above
        self._process.stdin.close()
        await self._process.wait()
        await self._listening

    async def fork(self, handler: str, environment: dict[str, str], log: Path | None) -> Forked:
        assert self._process.stdin is not None  # noqa: S101  # it is a pipe, see above
        order = {"handler": handler, "environment": environment, "log": log and str(log)}
        async with self._one:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            pid = await self._born.get()
        return Forked(pid, self._ended[pid])

    async def _listen(self) -> None:
        assert self._process.stdout is not None  # noqa: S101  # it is a pipe, see above
        async for line in self._process.stdout:
            said = json.loads(line)
            if "status" in said:
                self._ended.pop(said["pid"]).set_result(said["status"])
            else:
                self._ended[said["pid"]] = asyncio.get_running_loop().create_future()
                self._born.put_nowait(said["pid"])


def _become(order: dict[str, Any]) -> None:
    """In the child: the runtime client with that handler, as a process that was started anew."""
    os.setsid()
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    output = os.open(order["log"] or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    silence = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((silence, 0), (output, 1), (output, 2)):
        os.dup2(ours, theirs)
    os.environ.clear()
    os.environ.update(order["environment"])
    gc.enable()
    sys.argv = ["awslambdaric", order["handler"]]
    runpy.run_module("awslambdaric", run_name="__main__", alter_sys=True)


def _say(**what: int) -> None:
    print(json.dumps(what), flush=True)


def main() -> None:
    """A line of JSON in is a sandbox wanted, a line out one born or ended. The end of input is the
    end of whoever started this, and of all that are left."""
    gc.disable()
    for name in IMPORTED:
        __import__(name)
    gc.freeze()  # so that no collection in a child touches, and copies, what all share
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this ends it
    signal.set_wakeup_fd(writing)
    alive: set[int] = set()
    open_ = True
    while open_ or alive:
        ready, _, _ = select.select([reading, *([sys.stdin.buffer] if open_ else [])], [], [])
        if reading in ready:
            os.read(reading, 1024)
            while alive:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                alive.discard(pid)
                _say(pid=pid, status=os.waitstatus_to_exitcode(status))
        if sys.stdin.buffer in ready:
            line = os.read(0, 1)  # unbuffered: select does not know of what a buffer holds
            while line and not line.endswith(b"\n"):
                line += os.read(0, 1)
            open_ = bool(line)
            if not open_:
                for pid in alive:
                    os.kill(pid, signal.SIGKILL)
            else:
                order = json.loads(line)
                if pid := os.fork():
                    alive.add(pid)
                    _say(pid=pid)
                else:
                    _become(order)
