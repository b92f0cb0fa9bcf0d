"""A fleet of one sandbox for tests that inject faults, with its log lines.

Events arrive through the real runtime interface client, and queries go through a real PgBouncer.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.database.roles import APP
from infra.local.fleet import Fleet, InvocationResult
from infra.local.pgbouncer import PgBouncer
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import log_lines
from tests.events import http_api

READ = http_api("GET", "/orders/1")
BLOCKED_SESSIONS = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
)


def write(key: str) -> dict[str, Any]:
    body = json.dumps({"customer_name": "Ivory Drums"})
    return http_api("POST", "/orders", body=body, idempotency_key=key)


def outcome(result: InvocationResult) -> tuple[int, str | None]:
    """Return the status and the value of Retry-After."""
    return result.payload["statusCode"], result.payload["headers"].get("retry-after")


class LoggedFleet(Fleet):
    """A fleet of one sandbox, with the log line of its last invocation."""

    def __init__(self, environment: dict[str, str], folder: Path, **options: Any) -> None:
        super().__init__(environment, logs=folder, **options)
        self._log = folder / "sandbox-1.log"

    @property
    def last(self) -> dict[str, Any]:
        return log_lines(self._log.read_text())[-1]

    @property
    def attempts(self) -> int:
        return int(self.last["attempts"])

    async def recovers(self) -> bool:
        """Return whether a read succeeds afterwards in the same sandbox."""
        result = await self.invoke(READ)
        return outcome(result) == (200, None) and not result.cold


@dataclass
class FailingFleet:
    """A fleet whose queries can be blocked while a fault is injected."""

    fleet: LoggedFleet
    bouncer: PgBouncer
    proxy: TcpProxy
    admin: Any
    locker: Any

    async def during_query(
        self, event: dict[str, Any], inject: Callable[[], Awaitable[object]]
    ) -> InvocationResult:
        """Invoke the function, and inject a fault while its query waits for a lock."""
        async with self.locker.transaction():
            await self.locker.execute("LOCK TABLE order_requests, orders IN ACCESS EXCLUSIVE MODE")
            invocation = asyncio.create_task(self.fleet.invoke(event))
            async with asyncio.timeout(5):
                while not await self.admin.fetchval(BLOCKED_SESSIONS, APP):
                    await asyncio.sleep(0.01)
            await inject()
        return await invocation
