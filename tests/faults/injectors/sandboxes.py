"""A sandbox frozen during a query or a transaction.

Lambda freezes sandboxes only between invocations, but a slow machine or a less careful handler can
have the same effect.
"""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from tests.faults.injectors import SystemUnderTest
from tests.faults.traffic import CALLERS


@asynccontextmanager
async def client_silent_with_locks(system: SystemUnderTest) -> AsyncIterator[None]:
    """Freeze a client inside a transaction, without Postgres' own limit: PgBouncer's must apply."""
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    table = system.tables.partition(",")[0]
    held += f" AND relation = '{table}'::regclass"
    silent = await system.connect_as_client()
    try:
        await silent.execute("BEGIN")
        await silent.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await silent.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        async with system.admin() as admin:
            assert await admin.fetchval(held) == 1
            yield
            async with asyncio.timeout(8):
                while await admin.fetchval(held):
                    await asyncio.sleep(0.02)
    finally:
        silent.terminate()


@asynccontextmanager
async def frozen_in_mid_query(system: SystemUnderTest) -> AsyncIterator[None]:
    """Freeze a sandbox while its query waits for a lock. The query then completes, and nobody reads
    its result."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
    )
    app = system.stack.service.app
    async with system.admin() as admin, system.admin() as locker, locker.transaction():
        await locker.execute(f"LOCK TABLE {system.tables} IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(4):
            while await admin.fetchval(waiting, app) < system.servers(CALLERS):
                await asyncio.sleep(0.01)
        frozen = next(each for each in system.fleet.sandboxes if not each.frozen)
        os.killpg(frozen.pid, signal.SIGSTOP)
    yield
    os.killpg(frozen.pid, signal.SIGCONT)
