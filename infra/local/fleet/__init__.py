"""A Lambda service on this machine.

The fleet assigns events to sandboxes: one event at a time to each, a new sandbox (a cold start) if
none is idle, up to the reserved concurrency. `infra/local/LAMBDA.md` says what is real and what is
emulated.
"""

import asyncio
import contextlib
import dataclasses
import functools
import itertools
import sys
import time
from pathlib import Path
from typing import Any, Self

from infra.local import ROOT
from infra.local.fleet.fork_server import ForkServer
from infra.local.fleet.runtime_api import InvocationResult
from infra.local.fleet.sandbox import Ending, Sandbox
from infra.local.network import Filter

__all__ = ["THROTTLED", "Ending", "Fleet", "InvocationResult", "Sandbox"]

#: Lambda's error type above the reserved concurrency.
THROTTLED = "TooManyRequestsException"


class Fleet:
    """A function with its sandboxes.

    `environment`: the function's variables (`DB_*`). `concurrency`: the reserved concurrency, above
    which events are throttled. `timeout`: the function's, in seconds. `idle`: after how many idle
    seconds a sandbox is shut down; None: never. `extensions`: False rejects every registration.
    `logs`: a folder for the sandboxes' output; None: inherited. `root`: the folder with the code,
    as /var/task; only it is on the path. `python`: the interpreter with the code's packages.
    `packet_filter`: see `Sandbox`. `fork_server`: forks the sandboxes with its own root and
    interpreter.
    """

    def __init__(
        self,
        environment: dict[str, str],
        *,
        handler: str = "handler.main.handler",
        concurrency: int = 1,
        timeout: float = 10.0,
        idle: float | None = None,
        extensions: bool = True,
        logs: Path | None = None,
        root: Path = ROOT,
        python: str = sys.executable,
        packet_filter: Filter | None = None,
        fork_server: ForkServer | None = None,
    ) -> None:
        self._concurrency = concurrency
        self._timeout = timeout
        self._idle_seconds = idle
        self._logs = logs
        self._start_sandbox = functools.partial(
            Sandbox.start,
            handler,
            environment,
            extensions=extensions,
            root=root,
            python=python,
            packet_filter=packet_filter,
            fork_server=fork_server,
        )
        self._sandbox_numbers = itertools.count(1)
        self._starting = 0
        self._idle: list[Sandbox] = []
        self._reapers: dict[Sandbox, asyncio.TimerHandle] = {}
        self._reaped: set[asyncio.Task[bool]] = set()
        #: All sandboxes, idle or not, except those left frozen.
        self.sandboxes: set[Sandbox] = set()
        #: Sandboxes that end after their current event.
        self._retiring: dict[Sandbox, asyncio.Event] = {}
        self._frozen_for_good: set[Sandbox] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.end())

    async def invoke(self, event: Any, *, cold: bool = False) -> InvocationResult:
        """Invoke the function; failures are results, as on Lambda. `cold`: in a new sandbox even
        if one is idle."""
        started = time.monotonic()
        if not cold and (sandbox := await self._take_idle()):
            return await self._invoke(sandbox, event)
        if self._starting + len(self.sandboxes) >= self._concurrency:
            payload = {"message": "Rate Exceeded.", "Type": "User"}
            return InvocationResult("", payload, THROTTLED, 0, 0.0)
        self._starting += 1
        try:
            number = next(self._sandbox_numbers)
            log = self._logs and self._logs / f"sandbox-{number}.log"
            sandbox = await self._start_sandbox(log=log)
            self.sandboxes.add(sandbox)
        finally:
            self._starting -= 1
        answer = await self._invoke(sandbox, event)
        return dataclasses.replace(answer, cold=True, ms=(time.monotonic() - started) * 1000)

    async def _take_idle(self) -> Sandbox | None:
        """Take the most recently used sandbox, so that the others can time out."""
        while self._idle:
            sandbox = self._idle.pop()
            if reaper := self._reapers.pop(sandbox, None):
                reaper.cancel()
            if await sandbox.settled():
                return sandbox
            await self._remove(sandbox)  # it exited after its last event
        return None

    async def _invoke(self, sandbox: Sandbox, event: Any) -> InvocationResult:
        try:
            answer = await sandbox.invoke(event, self._timeout)
        except BaseException:
            await self._remove(sandbox)
            raise
        if idle_again := self._retiring.get(sandbox):
            idle_again.set()
        elif sandbox.alive and sandbox in self.sandboxes:
            self._idle.append(sandbox)
            if self._idle_seconds is not None:
                loop = asyncio.get_running_loop()
                self._reapers[sandbox] = loop.call_later(self._idle_seconds, self._reap, sandbox)
        else:
            await self._remove(sandbox)
        return answer

    def _reap(self, sandbox: Sandbox) -> None:
        task = asyncio.create_task(self.retire(sandbox))
        self._reaped.add(task)
        task.add_done_callback(self._reaped.discard)

    async def retire(self, sandbox: Sandbox, how: Ending = Ending.GRACEFUL) -> bool:
        """End a sandbox, after waiting up to a second for its event. Return whether it was idle."""
        if sandbox in self._idle:
            self._idle.remove(sandbox)
            idle = True
        else:
            idle_again = self._retiring[sandbox] = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(idle_again.wait(), 1)
            idle = idle_again.is_set()
            del self._retiring[sandbox]
        if reaper := self._reapers.pop(sandbox, None):
            reaper.cancel()
        await self._remove(sandbox, how)
        return idle

    async def _remove(self, sandbox: Sandbox, how: Ending = Ending.GRACEFUL) -> None:
        self.sandboxes.discard(sandbox)
        if how is Ending.FREEZE:
            self._frozen_for_good.add(sandbox)
        await sandbox.end(how)

    async def end(self) -> None:
        """Shut down all sandboxes and kill those left frozen."""
        for reaper in self._reapers.values():
            reaper.cancel()
        self._idle.clear()
        await asyncio.gather(
            *map(self._remove, list(self.sandboxes)),
            *(sandbox.end(Ending.KILL) for sandbox in self._frozen_for_good),
            *self._reaped,
        )
