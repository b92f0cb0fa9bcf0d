"""A Lambda service on this machine.

Owns which sandbox gets which event: one event at a time to each, a new one (a cold start) where
none is idle. Leaves the processes to `sandbox`, their API to `runtime_api`, HTTP to `front_door`.
"""

import asyncio
import dataclasses
import itertools
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from infra.local.fleet.runtime_api import Answer
from infra.local.fleet.sandbox import Sandbox
from infra.local.network import Filter

__all__ = ["Answer", "Fleet", "Sandbox"]


class Fleet:
    """`environment`: what the function is configured with (`DB_*`). `concurrency`: how many
    sandboxes may live at once; an event beyond that waits. `timeout`: the function's, in seconds.
    `logs`: a folder for what sandboxes print; None: here. `packet_filter`: for a hard freeze, see
    `Sandbox`.
    """

    def __init__(
        self,
        environment: dict[str, str],
        *,
        handler: str = "handler.main.handler",
        concurrency: int = 1,
        timeout: float = 10.0,
        logs: Path | None = None,
        packet_filter: Filter | None = None,
    ) -> None:
        self._environment = environment
        self._handler = handler
        self._timeout = timeout
        self._logs = logs
        self._filter = packet_filter
        self._numbers = itertools.count(1)
        self._slots = asyncio.Semaphore(concurrency)
        self._idle: list[Sandbox] = []
        #: Every sandbox that lives, idle or not.
        self.sandboxes: set[Sandbox] = set()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await asyncio.shield(self.end())

    async def invoke(self, event: Any) -> Answer:
        """The function's answer to `event`, any JSON. Failures are answers too, as on Lambda."""
        begun = time.monotonic()
        async with self._slots:
            while self._idle and not self._idle[-1].alive:
                await self._remove(self._idle.pop())  # it died meanwhile
            if self._idle:
                sandbox = self._idle.pop()
                return await self._invoke(sandbox, event)
            number = next(self._numbers)
            log = self._logs and self._logs / f"sandbox-{number}.log"
            sandbox = await Sandbox.start(
                self._handler, self._environment, log=log, packet_filter=self._filter
            )
            self.sandboxes.add(sandbox)
            answer = await self._invoke(sandbox, event)
            ms = (time.monotonic() - begun) * 1000
            return dataclasses.replace(answer, cold=True, ms=ms)

    async def _invoke(self, sandbox: Sandbox, event: Any) -> Answer:
        try:
            answer = await sandbox.invoke(event, self._timeout)
        except BaseException:
            await self._remove(sandbox)
            raise
        if sandbox.alive:
            self._idle.append(sandbox)
        else:
            await self._remove(sandbox)
        return answer

    async def _remove(self, sandbox: Sandbox) -> None:
        self.sandboxes.discard(sandbox)
        await sandbox.end()

    async def end(self) -> None:
        """End every sandbox as Lambda ends them: see `Sandbox.end`."""
        self._idle.clear()
        await asyncio.gather(*map(self._remove, list(self.sandboxes)))
