"""Locks a row for queries to wait for, and watches the application's backends."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra.database.roles import APP
from infra.local.stack import Stack
from tests.conftest import PgConnection, administrator

BUSY_BACKENDS = (
    "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
    " AND (state = 'active' OR state LIKE 'idle in transaction%')"
)


@asynccontextmanager
async def locked_row(stack: Stack) -> AsyncIterator[None]:
    """Lock order 1 for the duration of the block."""
    async with administrator(stack) as connection:
        transaction = connection.transaction()
        await transaction.start()
        await connection.execute("SELECT FROM orders WHERE id = 1 FOR UPDATE")
        try:
            yield
        finally:
            await transaction.rollback()


async def stays_idle(admin: PgConnection, seconds: float = 1.0) -> bool:
    """Return whether the application's backends stay idle for that long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if await admin.fetchval(BUSY_BACKENDS, APP):
            return False
        await asyncio.sleep(0.02)
    return True
