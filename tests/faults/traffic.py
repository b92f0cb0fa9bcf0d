"""Steady traffic through a fleet, with a record of every response."""

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from infra.local.fleet import Fleet
from infra.local.service import SAMPLE, Service
from tests.conftest import log_lines
from tests.faults.writes import Kind, Write, kind_of

#: Callers, each with one request at a time, and as many sandboxes.
CALLERS = 4
#: The interval between two requests of one caller, in seconds.
REQUEST_INTERVAL_S = 0.05


@dataclass(frozen=True)
class Request:
    """A completed request, with times on the monotonic clock."""

    started_at: float
    finished_at: float
    status: int
    ms: float

    @property
    def succeeded(self) -> bool:
        return self.status in (200, 201)

    def succeeded_after(self, moment: float) -> bool:
        return self.succeeded and self.finished_at > moment


@dataclass
class Traffic:
    """Alternate reads and writes by concurrent callers for the duration of the block.

    It can be entered again and keeps its record. `logs`: the folder of the fleet's logs, whose name
    prefixes the keys.
    """

    fleet: Fleet
    logs: Path
    service: Service = SAMPLE
    requests: list[Request] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    confirmed: list[Write] = field(default_factory=list)

    @property
    def _kind(self) -> Kind:
        return kind_of(self.service)

    async def __aenter__(self) -> Self:
        # All cold starts happen now, outside the fault.
        first = await asyncio.gather(*(self._invoke(self.service.event) for _ in range(CALLERS)))
        wrong = [json.loads(each["body"]) for each in first if each["statusCode"] != 200]
        assert not wrong, [self._log_lines_of(each["request_id"]) for each in wrong]
        self.requests.clear()
        self._stopped = asyncio.Event()
        turns = itertools.cycle((False, True))
        self._callers = [asyncio.create_task(self._call(turns)) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._callers)

    async def _call(self, turns: Iterator[bool]) -> None:
        while not self._stopped.is_set():
            due = time.monotonic() + REQUEST_INTERVAL_S
            if next(turns):
                await self._write()
            else:
                await self._read()
            await asyncio.sleep(due - time.monotonic())

    async def _read(self) -> None:
        """Read an order created before, and check that the response is that order."""
        if not self.confirmed:
            await self._invoke(self.service.event)
            return
        write = random.choice(self.confirmed)
        payload = await self._invoke(self._kind.read(write))
        if payload["statusCode"] == 200:
            assert self._kind.is_of(write, json.loads(payload["body"])), payload

    async def _write(self) -> None:
        number = len(self.writes)
        write = Write(f"{self.logs.name}-{number}", f"{self.logs.name}, value {number}")
        self.writes.append(write)
        await self._send(write)

    async def _send(self, write: Write) -> None:
        payload = await self._invoke(self._kind.write(write))
        if payload["statusCode"] in (200, 201):
            write.answer = json.loads(payload["body"])
            self.confirmed.append(write)

    async def _invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        started_at = time.monotonic()
        answer = await self.fleet.invoke(event)
        assert answer.error is None, answer  # the sandbox crashed or timed out
        payload: dict[str, Any] = answer.payload
        status = payload["statusCode"]
        expected = status in (200, 201, 504) or (
            status == 503 and "retry-after" in payload["headers"]
        )
        assert expected, (payload, self._log_lines_of(answer.request_id))
        self.requests.append(Request(started_at, time.monotonic(), status, answer.ms))
        return payload

    def _log_lines_of(self, request_id: str) -> list[str]:
        lines = [line for log in self.logs.glob("*.log") for line in log.read_text().splitlines()]
        return [line for line in lines if request_id in line]

    def retried_by_handler(self) -> int:
        """Count the requests that took the handler more than one attempt, from its log."""
        lines = itertools.chain.from_iterable(
            log_lines(log.read_text()) for log in self.logs.glob("*.log")
        )
        return sum(line.get("attempts", 0) > 1 for line in lines)

    async def wait_for_success(self) -> None:
        """Wait for a request that succeeds from now on."""
        seen = len(self.requests)
        async with asyncio.timeout(30):
            while not any(request.succeeded for request in self.requests[seen:]):
                await asyncio.sleep(0.01)

    async def retry_missing_writes(self) -> int:
        """Send every unanswered write until it succeeds; return how many there were."""
        missing = [write for write in self.writes if write.answer is None]
        for write in missing:
            async with asyncio.timeout(10):
                while write.answer is None:
                    await self._send(write)
        return len(missing)

    async def warm_every_sandbox(self) -> None:
        """Send concurrent reads until every sandbox has its connection."""
        statuses = {0}
        async with asyncio.timeout(10):
            while statuses != {200}:
                reads = (self._invoke(self.service.event) for _ in self.fleet.sandboxes)
                statuses = {answer["statusCode"] for answer in await asyncio.gather(*reads)}

    async def count_lost_and_duplicated(self, admin: Any) -> tuple[int, int]:
        """Count the lost and the duplicated rows of all writes."""
        return await self._kind.count_lost_and_duplicated(admin, self.writes)
