"""Steady traffic through a fleet, and the ledger of what it was answered.

Owns who asks what and when, and the reckoning: every key is one order, as it was sent. Leaves what
is broken meanwhile to `breakages`.
"""

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
from tests.conftest import log_lines
from tests.events import http_api

#: Callers, each with one request at a time; as many sandboxes.
CALLERS = 4
#: From one request of a caller to his next, in seconds, where the answer comes sooner.
PACE = 0.05
READ = http_api("GET", "/orders/1")
#: What the database holds of these keys, and of these names.
KEYS = """SELECT key, order_id, customer_name FROM order_requests LEFT JOIN orders ON id = order_id
WHERE key = ANY($1)"""
NAMES = "SELECT customer_name FROM orders WHERE customer_name = ANY($1)"


@dataclass
class Entry:
    """A write: its key, what it says, and the order it was answered with."""

    key: str
    customer: str
    order_id: int | None = None

    @property
    def event(self) -> dict[str, Any]:
        body = json.dumps({"customer_name": self.customer})
        return http_api("POST", "/orders", body=body, idempotency_key=self.key)


@dataclass(frozen=True)
class Request:
    """One that was made, on the monotonic clock."""

    begun: float
    done: float
    status: int
    ms: float

    @property
    def answered(self) -> bool:
        return self.status in (200, 201)

    def answered_after(self, moment: float) -> bool:
        return self.answered and self.done > moment


@dataclass
class Traffic:
    """`async with Traffic(fleet, folder):` callers read and write by turns, until the end of the
    block; again in the next one, with the same ledger. `logs`: the fleet's folder; with its name
    begin the keys."""

    fleet: Fleet
    logs: Path
    requests: list[Request] = field(default_factory=list)
    ledger: list[Entry] = field(default_factory=list)
    placed: list[Entry] = field(default_factory=list)

    async def __aenter__(self) -> Self:
        # All cold starts now: none is a part of a fault.
        first = await asyncio.gather(*(self._ask(READ) for _ in range(CALLERS)))
        wrong = [json.loads(each["body"]) for each in first if each["statusCode"] != 200]
        assert not wrong, [self._said_of(each["request_id"]) for each in wrong]
        self.requests.clear()
        self._over = asyncio.Event()
        turns = itertools.cycle((False, True))
        self._callers = [asyncio.create_task(self._call(turns)) for _ in range(CALLERS)]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over.set()
        await asyncio.gather(*self._callers)

    async def _call(self, turns: Iterator[bool]) -> None:
        while not self._over.is_set():
            due = time.monotonic() + PACE
            if next(turns):
                await self._write()
            else:
                await self._read()
            await asyncio.sleep(due - time.monotonic())

    async def _read(self) -> None:
        """One of the orders that were placed before: that one it is, and no other."""
        if not self.placed:
            await self._ask(READ)
            return
        entry = random.choice(self.placed)  # noqa: S311  # no secret depends on it
        payload = await self._ask(http_api("GET", f"/orders/{entry.order_id}"))
        if payload["statusCode"] == 200:
            order = json.loads(payload["body"])
            assert (order["id"], order["customer_name"]) == (entry.order_id, entry.customer)

    async def _write(self) -> None:
        number = len(self.ledger)
        entry = Entry(f"{self.logs.name}-{number}", f"{self.logs.name}, customer {number}")
        self.ledger.append(entry)
        await self._place(entry)

    async def _place(self, entry: Entry) -> None:
        payload = await self._ask(entry.event)
        if payload["statusCode"] == 201:
            entry.order_id = json.loads(payload["body"])["id"]
            self.placed.append(entry)

    async def _ask(self, event: dict[str, Any]) -> dict[str, Any]:
        begun = time.monotonic()
        answer = await self.fleet.invoke(event)
        assert answer.error is None, answer  # the sandbox ended, or ran out of time
        payload: dict[str, Any] = answer.payload
        status = payload["statusCode"]
        expected = status in (200, 201, 504) or (
            status == 503 and "retry-after" in payload["headers"]
        )
        assert expected, (payload, self._said_of(answer.request_id))
        self.requests.append(Request(begun, time.monotonic(), status, answer.ms))
        return payload

    def _said_of(self, request_id: str) -> list[str]:
        lines = [line for log in self.logs.glob("*.log") for line in log.read_text().splitlines()]
        return [line for line in lines if request_id in line]

    def tried_again(self) -> int:
        """How many requests took the handler more than one attempt, by its log."""
        lines = itertools.chain.from_iterable(
            log_lines(log.read_text()) for log in self.logs.glob("*.log")
        )
        return sum(line.get("attempts", 0) > 1 for line in lines)

    async def success(self) -> None:
        """Until a request that is answered from now on."""
        seen = len(self.requests)
        async with asyncio.timeout(30):
            while not any(request.answered for request in self.requests[seen:]):  # noqa: ASYNC110  # it rings no bell
                await asyncio.sleep(0.01)

    async def send_again(self) -> int:
        """Every key that has no answer yet, until it has; how many those were."""
        missing = [entry for entry in self.ledger if entry.order_id is None]
        for entry in missing:
            async with asyncio.timeout(10):
                while entry.order_id is None:
                    await self._place(entry)
        return len(missing)

    async def reach_every_sandbox(self) -> None:
        """A read by each at the same time, until all are answered: then each has its connection."""
        statuses = {0}
        async with asyncio.timeout(10):
            while statuses != {200}:
                reads = (self._ask(READ) for _ in self.fleet.sandboxes)
                statuses = {answer["statusCode"] for answer in await asyncio.gather(*reads)}

    async def reckon(self, admin: Any) -> tuple[int, int]:
        """Rows lost and rows doubled, of every key in the ledger."""
        keys = [tuple(row) for row in await admin.fetch(KEYS, [each.key for each in self.ledger])]
        orders = await admin.fetch(NAMES, [each.customer for each in self.ledger])
        expected = {(each.key, each.order_id, each.customer) for each in self.ledger}
        kept = expected & set(keys)
        return len(expected - kept), max(len(keys), len(orders)) - len(kept)
