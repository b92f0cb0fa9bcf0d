"""Callers who go on sending events, and the record of what they were answered."""

import asyncio
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Self

from infra.local.examine import answers
from infra.local.examine.lab import Lab, with_key
from infra.local.fleet import Fleet

#: From one event of a caller to the next, in seconds, where the answer comes sooner.
INTERVAL_S = 0.05


@dataclass(frozen=True)
class Request:
    """One that was made, on the monotonic clock. `key`: what stood in its `{key}`."""

    started_at: float
    finished_at: float
    succeeded: bool
    words: str
    index: int
    key: str


@dataclass
class Traffic:
    """`async with Traffic(lab, fleet, callers):` each has one request at a time."""

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

    async def send_cold(self, index: int) -> bool:
        """By a new sandbox."""
        return await self.send(index, self.lab.new_key(), cold=True)

    async def send(self, index: int, key: str, *, cold: bool = False) -> bool:
        events = self.lab.inputs.events
        index %= len(events)
        started_at = time.monotonic()
        answer = await self.fleet.invoke(with_key(events[index], key), cold=cold)
        succeeded = self.lab.is_right(index, answer)
        words = "" if succeeded else str(answer.error or answers.status(answer))
        self.requests.append(Request(started_at, time.monotonic(), succeeded, words, index, key))
        return succeeded

    @property
    def failed(self) -> list[Request]:
        return [each for each in self.requests if not each.succeeded]

    @property
    def causes(self) -> str:
        return ", ".join(
            f"{count} × {words}" for words, count in Counter(e.words for e in self.failed).items()
        )
