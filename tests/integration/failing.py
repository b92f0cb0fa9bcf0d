"""A sandbox that is failed on purpose: what it answers, and what its own log says of that.

The traffic goes through a real PgBouncer from a real runtime client; `attempts` is what the
handler's own log says.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.database.roles import APP
from infra.local.fleet import Answer, Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.wire import Relay
from tests.conftest import log_lines
from tests.events import http_api

READ = http_api("GET", "/orders/1")
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"


def write(key: str) -> dict[str, Any]:
    body = json.dumps({"customer_name": "Ivory Drums"})
    return http_api("POST", "/orders", body=body, idempotency_key=key)


def outcome(answer: Answer) -> tuple[int, str | None]:
    """Status and Retry-After."""
    return answer.payload["statusCode"], answer.payload["headers"].get("retry-after")


class Logged(Fleet):
    """A fleet of one sandbox whose log says what the last invocation was."""

    def __init__(self, environment: dict[str, str], folder: Path, **more: Any) -> None:
        super().__init__(environment, logs=folder, **more)
        self._log = folder / "sandbox-1.log"

    @property
    def last(self) -> dict[str, Any]:
        return log_lines(self._log.read_text())[-1]

    @property
    def attempts(self) -> int:
        return int(self.last["attempts"])

    async def is_well(self) -> bool:
        """Whether a good request follows in the same sandbox."""
        answer = await self.invoke(READ)
        return outcome(answer) == (200, None) and not answer.cold


@dataclass
class Failing:
    """A fleet whose queries can be made to wait, while something is done to what they run on."""

    fleet: Logged
    bouncer: PgBouncer
    relay: Relay
    admin: Any
    locker: Any

    async def mid_query(
        self, event: dict[str, Any], act: Callable[[], Awaitable[object]]
    ) -> Answer:
        async with self.locker.transaction():
            await self.locker.execute("LOCK TABLE order_requests, orders IN ACCESS EXCLUSIVE MODE")
            answer = asyncio.create_task(self.fleet.invoke(event))
            async with asyncio.timeout(5):
                while not await self.admin.fetchval(BLOCKED, APP):  # noqa: ASYNC110  # no bell
                    await asyncio.sleep(0.01)
            await act()
        return await answer
