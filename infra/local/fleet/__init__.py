"""A Lambda service on this machine.

Owns which sandbox gets which event: one event at a time to each, a new one (a cold start) where
none is idle, none above the reserved concurrency. Leaves the processes to `sandbox`, their API to
`runtime_api`, HTTP to `front_door`. What is real in it and what is played: `infra/local/LAMBDA.md`.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any, Self

from infra.local import ROOT
from infra.local.fleet.nursery import Nursery
from infra.local.fleet.runtime_api import Answer
from infra.local.fleet.sandbox import Ending, Sandbox
from infra.local.network import Filter

__all__ = ["THROTTLED", "Answer", "Ending", "Fleet", "Sandbox"]

#: Lambda's error type for an event that finds no sandbox and no room for another.
THROTTLED = "TooManyRequestsException"


class Fleet:
    """`environment`: what the function is configured with (`DB_*`). `concurrency`: how many
    sandboxes may live at once (reserved concurrency); an event beyond that is throttled. `timeout`:
    the function's, in seconds. `idle`: seconds after which an idle sandbox is shut down; None:
    never. `extensions`: False refuses every registration. `logs`: a folder for what sandboxes
    print; None: here. `root`: the folder with the code, as /var/task. `packet_filter`: for a hard
    freeze, see `Sandbox`. `nursery`: forks them.
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
        packet_filter: Filter | None = None,
        nursery: Nursery | None = None,
    ) -> None:
        self._environment = environment
        self._handler = handler
        self._concurrency = concurrency
        self._timeout = timeout
        self._idle_seconds = idle
        self._extensions = extensions
        self._logs = logs
        self._root = root
        self._filter = packet_filter
        self._nursery = nursery
        self._numbers = itertools.count(1)
        self._starting = 0
        self._idle: list[Sandbox] = []
        self._reapers: dict[Sandbox, asyncio.TimerHandle] = {}
        self._reaped: set[asyncio.Task[bool]] = set()
        #: Every sandbox that lives, idle or not; but for those left frozen.
        self.sandboxes: set[Sandbox] = set()
        #: Those that are to end after the event they have.
        self._retiring: dict[Sandbox, asyncio.Event] = {}
        self._left_frozen: set[Sandbox] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.end())

    async def invoke(self, event: Any, *, cold: bool = False) -> Answer:
        """The function's answer to `event`, any JSON. Failures are answers too, as on Lambda.
        `cold`: by a new sandbox, though an idle one is there; of a new version, on Lambda."""
        begun = time.monotonic()
        if not cold and (sandbox := await self._take_idle()):
            return await self._invoke(sandbox, event)
        if self._starting + len(self.sandboxes) >= self._concurrency:
            payload = {"message": "Rate Exceeded.", "Type": "User"}
            return Answer("", payload, THROTTLED, 0, 0.0)
        self._starting += 1
        try:
            number = next(self._numbers)
            sandbox = await Sandbox.start(
                self._handler,
                self._environment,
                extensions=self._extensions,
                log=self._logs and self._logs / f"sandbox-{number}.log",
                root=self._root,
                packet_filter=self._filter,
                nursery=self._nursery,
            )
            self.sandboxes.add(sandbox)
        finally:
            self._starting -= 1
        answer = await self._invoke(sandbox, event)
        return dataclasses.replace(answer, cold=True, ms=(time.monotonic() - begun) * 1000)

    async def _take_idle(self) -> Sandbox | None:
        """The one that was used last: the others may grow old, and be reaped."""
        while self._idle:
            sandbox = self._idle.pop()
            if reaper := self._reapers.pop(sandbox, None):
                reaper.cancel()
            if await sandbox.settled():
                return sandbox
            await self._remove(sandbox)  # it died after its last answer
        return None

    async def _invoke(self, sandbox: Sandbox, event: Any) -> Answer:
        try:
            answer = await sandbox.invoke(event, self._timeout)
        except BaseException:
            await self._remove(sandbox)
            raise
        if rest := self._retiring.get(sandbox):
            rest.set()
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
        """End a sandbox; it gets no event any more. One that has an event is waited for, but no
        longer than a second: whether it was idle."""
        if sandbox in self._idle:
            self._idle.remove(sandbox)
            idle = True
        else:
            rest = self._retiring[sandbox] = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(rest.wait(), 1)
            idle = rest.is_set()
            del self._retiring[sandbox]
        if reaper := self._reapers.pop(sandbox, None):
            reaper.cancel()
        await self._remove(sandbox, how)
        return idle

    async def _remove(self, sandbox: Sandbox, how: Ending = Ending.GRACEFUL) -> None:
        self.sandboxes.discard(sandbox)
        if how is Ending.FREEZE:
            self._left_frozen.add(sandbox)
        await sandbox.end(how)

    async def end(self) -> None:
        """Shut down every sandbox, and kill those left frozen."""
        for reaper in self._reapers.values():
            reaper.cancel()
        self._idle.clear()
        await asyncio.gather(
            *map(self._remove, list(self.sandboxes)),
            *(sandbox.end(Ending.KILL) for sandbox in self._left_frozen),
            *self._reaped,
        )
