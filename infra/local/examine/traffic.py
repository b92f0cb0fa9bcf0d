"""Callers who keep sending events, and a record of their requests."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from infra.local.examine import responses
from infra.local.examine.lab import Lab, replace_key
from infra.local.fleet import Fleet

#: The least time between two requests of a caller, in seconds.
INTERVAL_S = 0.05


@dataclass(frozen=True)
class Request:
    """A request with the index of its event, the value of `{key}`, and the error or status of a
    failure. `finished_at` is a monotonic time."""

    finished_at: float
    succeeded: bool
    cause: str
    index: int
    key: str


@dataclass
class Traffic:
    """A context manager that runs callers. Each one waits for the response to its request before it
    sends the next."""

    lab: Lab
    fleet: Fleet
    callers: int
    requests: list[Request] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        self._stopped = asyncio.Event()
        self._tasks = [asyncio.create_task(self._call(number)) for number in range(self.callers)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._tasks)

    async def _call(self, number: int) -> None:
        while not self._stopped.is_set():
            due = time.monotonic() + INTERVAL_S
            await self.send(number, self.lab.new_key())
            number += 1
            await asyncio.sleep(due - time.monotonic())

    async def send(self, index: int, key: str, *, cold: bool = False) -> bool:
        """Send an event, to a new sandbox if `cold`. Return whether the response was correct."""
        events = self.lab.inputs.events
        index %= len(events)
        result = await self.fleet.invoke(replace_key(events[index], key), cold=cold)
        succeeded = self.lab.is_correct(index, result)
        cause = "" if succeeded else str(result.error or responses.status(result))
        self.requests.append(Request(time.monotonic(), succeeded, cause, index, key))
        return succeeded

    @property
    def failed(self) -> list[Request]:
        return [request for request in self.requests if not request.succeeded]

    @property
    def causes(self) -> str:
        counts = Counter(request.cause for request in self.failed)
        return ", ".join(f"{count} × {cause}" for cause, count in counts.items())
