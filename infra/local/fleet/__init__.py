"""The Lambda service, emulated on this machine for the real runtime client.

A sandbox serves one event at a time. If none is idle, a new one is started (a cold start), up to
the reserved concurrency. `infra/local/LAMBDA.md` says what is real and what is emulated.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Any, Self, TypedDict, Unpack

from infra.local.fleet.fork_server import ForkServer
from infra.local.fleet.runtime_api import InvocationResult
from infra.local.fleet.sandbox import Ending, Sandbox
from infra.local.network import Filter

__all__ = ["THROTTLED", "Ending", "Fleet", "InvocationResult", "Sandbox"]

#: Lambda's error type above the reserved concurrency.
THROTTLED = "TooManyRequestsException"


class SandboxOptions(TypedDict, total=False):
    """Options of `Sandbox.start`."""

    extensions: bool
    root: Path
    python: str
    packet_filter: Filter | None
    fork_server: ForkServer | None


class Fleet:
    """A function with its sandboxes.

    `environment`: the function's variables (`DB_*`). `concurrency`: the reserved concurrency, above
    which events are throttled. `timeout`: the function's, in seconds. `idle`: after how many idle
    seconds a sandbox is shut down; None: never. `logs`: a folder for the sandboxes' output; None:
    inherited. `options`: see `Sandbox.start`.
    """

    def __init__(
        self,
        environment: dict[str, str],
        *,
        handler: str = "handler.main.handler",
        concurrency: int = 1,
        timeout: float = 10.0,
        idle: float | None = None,
        logs: Path | None = None,
        **options: Unpack[SandboxOptions],
    ) -> None:
        self._handler = handler
        self._environment = environment
        self._options = options
        self._concurrency = concurrency
        self._timeout = timeout
        self._idle_seconds = idle
        self._logs = logs
        self._sandbox_numbers = itertools.count(1)
        self._starting = 0
        self._idle: list[Sandbox] = []
        self._idle_timers: dict[Sandbox, asyncio.TimerHandle] = {}
        self._timed_out: set[asyncio.Task[bool]] = set()
        #: All sandboxes, idle or not, except those that are frozen for good.
        self.sandboxes: set[Sandbox] = set()
        #: For each sandbox that ends after its current event, an event that is set then.
        self._retiring: dict[Sandbox, asyncio.Event] = {}
        self._frozen_for_good: set[Sandbox] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.shield(self.end())

    async def invoke(self, event: Any, *, cold: bool = False) -> InvocationResult:
        """Invoke the function; failures are results, as on Lambda.

        `cold`: in a new sandbox even if one is idle.
        """
        started = time.monotonic()
        if not cold and (sandbox := await self._pop_idle()):
            return await self._invoke(sandbox, event)
        if self._starting + len(self.sandboxes) >= self._concurrency:
            payload = {"message": "Rate Exceeded.", "Type": "User"}
            return InvocationResult("", payload, THROTTLED, 0, 0.0)
        self._starting += 1
        try:
            log = self._logs and self._logs / f"sandbox-{next(self._sandbox_numbers)}.log"
            sandbox = await Sandbox.start(
                self._handler, self._environment, log=log, **self._options
            )
            self.sandboxes.add(sandbox)
        finally:
            self._starting -= 1
        result = await self._invoke(sandbox, event)
        return dataclasses.replace(result, cold=True, ms=(time.monotonic() - started) * 1000)

    async def _pop_idle(self) -> Sandbox | None:
        """Return the most recently used sandbox, so that the others can time out."""
        while self._idle:
            sandbox = self._idle.pop()
            self._cancel_idle_timer(sandbox)
            if await sandbox.settled():
                return sandbox
            await self._remove(sandbox)  # it exited after its last event
        return None

    async def _invoke(self, sandbox: Sandbox, event: Any) -> InvocationResult:
        try:
            result = await sandbox.invoke(event, self._timeout)
        except BaseException:
            await self._remove(sandbox)
            raise
        if is_idle := self._retiring.get(sandbox):
            is_idle.set()
        elif sandbox.alive and sandbox in self.sandboxes:
            self._idle.append(sandbox)
            if self._idle_seconds is not None:
                self._idle_timers[sandbox] = asyncio.get_running_loop().call_later(
                    self._idle_seconds, self._retire_timed_out, sandbox
                )
        else:
            await self._remove(sandbox)
        return result

    def _retire_timed_out(self, sandbox: Sandbox) -> None:
        task = asyncio.create_task(self.retire(sandbox))
        self._timed_out.add(task)
        task.add_done_callback(self._timed_out.discard)

    def _cancel_idle_timer(self, sandbox: Sandbox) -> None:
        if timer := self._idle_timers.pop(sandbox, None):
            timer.cancel()

    async def retire(self, sandbox: Sandbox, ending: Ending = Ending.GRACEFUL) -> bool:
        """End a sandbox, after waiting up to a second for its event. Return whether it was idle."""
        if sandbox in self._idle:
            self._idle.remove(sandbox)
            was_idle = True
        else:
            is_idle = self._retiring[sandbox] = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(is_idle.wait(), 1)
            was_idle = is_idle.is_set()
            del self._retiring[sandbox]
        self._cancel_idle_timer(sandbox)
        await self._remove(sandbox, ending)
        return was_idle

    async def _remove(self, sandbox: Sandbox, ending: Ending = Ending.GRACEFUL) -> None:
        self.sandboxes.discard(sandbox)
        if ending is Ending.FREEZE:
            self._frozen_for_good.add(sandbox)
        await sandbox.end(ending)

    async def end(self) -> None:
        """Shut down all sandboxes and kill those that are frozen for good."""
        for timer in self._idle_timers.values():
            timer.cancel()
        self._idle.clear()
        await asyncio.gather(
            *map(self._remove, list(self.sandboxes)),
            *(sandbox.end(Ending.KILL) for sandbox in self._frozen_for_good),
            *self._timed_out,
        )
