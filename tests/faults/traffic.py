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

#: The number of callers, each with one request at a time, and of sandboxes.
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

    It can be entered several times and keeps its record.
    """

    fleet: Fleet
    #: The folder of the fleet's logs. Its name prefixes the keys of the writes.
    logs: Path
    service: Service = SAMPLE
    requests: list[Request] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    confirmed: list[Write] = field(default_factory=list)

    @property
    def _kind(self) -> Kind:
        return kind_of(self.service)

    async def __aenter__(self) -> Self:
        # All cold starts happen here, before the fault.
        responses = await asyncio.gather(
            *(self._invoke(self.service.event) for _ in range(CALLERS))
        )
        failures = [
            json.loads(response["body"]) for response in responses if response["statusCode"] != 200
        ]
        assert not failures, [self._log_lines_of(failure["request_id"]) for failure in failures]
        self.requests.clear()
        self._stopped = asyncio.Event()
        is_write = itertools.cycle((False, True))
        self._callers = [asyncio.create_task(self._call(is_write)) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._stopped.set()
        await asyncio.gather(*self._callers)

    async def _call(self, is_write: Iterator[bool]) -> None:
        while not self._stopped.is_set():
            due = time.monotonic() + REQUEST_INTERVAL_S
            if next(is_write):
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
            write.response = json.loads(payload["body"])
            self.confirmed.append(write)

    async def _invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        started_at = time.monotonic()
        result = await self.fleet.invoke(event)
        assert result.error is None, result  # the sandbox crashed or timed out
        payload: dict[str, Any] = result.payload
        status = payload["statusCode"]
        expected = status in (200, 201, 504) or (
            status == 503 and "retry-after" in payload["headers"]
        )
        assert expected, (payload, self._log_lines_of(result.request_id))
        self.requests.append(Request(started_at, time.monotonic(), status, result.ms))
        return payload

    def _log_lines_of(self, request_id: str) -> list[str]:
        lines = [line for path in self.logs.glob("*.log") for line in path.read_text().splitlines()]
        return [line for line in lines if request_id in line]

    def retried_by_handler(self) -> int:
        """Count the requests that took the handler more than one attempt, from its log."""
        lines = itertools.chain.from_iterable(
            log_lines(path.read_text()) for path in self.logs.glob("*.log")
        )
        return sum(line.get("attempts", 0) > 1 for line in lines)

    async def wait_for_success(self) -> None:
        """Wait for a request that succeeds from now on."""
        requests_before = len(self.requests)
        async with asyncio.timeout(30):
            while not any(request.succeeded for request in self.requests[requests_before:]):
                await asyncio.sleep(0.01)

    async def retry_missing_writes(self) -> int:
        """Send every unanswered write until it succeeds; return how many there were."""
        missing = [write for write in self.writes if write.response is None]
        for write in missing:
            async with asyncio.timeout(10):
                while write.response is None:
                    await self._send(write)
        return len(missing)

    async def warm_every_sandbox(self) -> None:
        """Send concurrent reads until every sandbox has its connection."""
        statuses = {0}
        async with asyncio.timeout(10):
            while statuses != {200}:
                reads = (self._invoke(self.service.event) for _ in self.fleet.sandboxes)
                statuses = {response["statusCode"] for response in await asyncio.gather(*reads)}

    async def count_lost_and_duplicated(self, admin: Any) -> tuple[int, int]:
        """Count the lost and the duplicated rows of all writes."""
        return await self._kind.count_lost_and_duplicated(admin, self.writes)
