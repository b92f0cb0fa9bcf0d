"""Fault injectors that freeze a sandbox during a query or a client in a transaction.

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
    locks_held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    table = system.tables.partition(",")[0]
    locks_held += f" AND relation = '{table}'::regclass"
    client = await system.connect_as_client()
    try:
        await client.execute("BEGIN")
        await client.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await client.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        async with system.admin() as admin:
            assert await admin.fetchval(locks_held) == 1
            yield
            async with asyncio.timeout(6):  # before PgBouncer's query_timeout would end it, too
                while await admin.fetchval(locks_held):
                    await asyncio.sleep(0.02)
    finally:
        client.terminate()


@asynccontextmanager
async def frozen_in_mid_query(system: SystemUnderTest) -> AsyncIterator[None]:
    """Freeze a sandbox while its query waits for a lock.

    The query then completes, and nobody reads its result.
    """
    backends_waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
    )
    app = system.stack.service.app
    async with system.admin() as admin, system.admin() as locker, locker.transaction():
        await locker.execute(f"LOCK TABLE {system.tables} IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(4):
            while await admin.fetchval(backends_waiting, app) < system.servers(CALLERS):
                await asyncio.sleep(0.01)
        busy = next(sandbox for sandbox in system.fleet.sandboxes if not sandbox.frozen)
        os.killpg(busy.pid, signal.SIGSTOP)
    yield
    os.killpg(busy.pid, signal.SIGCONT)
