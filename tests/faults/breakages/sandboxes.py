"""A sandbox that Lambda freezes where it should not: Lambda freezes one between events alone, but
a machine may be too slow, or a handler that is copied from this one less careful."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from infra.database.roles import APP
from tests.faults.breakages import Place
from tests.faults.traffic import CALLERS


@asynccontextmanager
async def client_silent_with_locks(place: Place) -> AsyncIterator[None]:
    """A sandbox frozen inside a transaction, with Postgres' own limit off: the pooler's counts."""
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    held += " AND relation = 'order_requests'::regclass"
    silent = await place.connect_as_client()
    try:
        await silent.execute("BEGIN")
        await silent.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
        await silent.execute("LOCK TABLE order_requests IN ACCESS EXCLUSIVE MODE")
        async with place.admin() as admin:
            assert await admin.fetchval(held) == 1
            yield
            async with asyncio.timeout(8):
                while await admin.fetchval(held):  # noqa: ASYNC110  # it rings no bell
                    await asyncio.sleep(0.02)
    finally:
        silent.terminate()


@asynccontextmanager
async def frozen_in_mid_query(place: Place) -> AsyncIterator[None]:
    """One of those that wait for a lock, before it gets it. What it asked is done, its answer
    waits in its socket, and nobody waits for it."""
    waiting = (
        "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"
    )
    async with place.admin() as admin, place.admin() as locker, locker.transaction():
        await locker.execute("LOCK TABLE order_requests, orders IN ACCESS EXCLUSIVE MODE")
        async with asyncio.timeout(4):
            while await admin.fetchval(waiting, APP) < place.servers(CALLERS):  # noqa: ASYNC110  # it rings no bell
                await asyncio.sleep(0.01)
        frozen = next(each for each in place.fleet.sandboxes if not each.frozen)
        os.killpg(frozen.pid, signal.SIGSTOP)
    yield
    os.killpg(frozen.pid, signal.SIGCONT)
