"""Fault injectors that restart Postgres, use up its connections or terminate its backends."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from tests.faults.injectors import BACKENDS, TERMINATE, FaultInjector, SystemUnderTest, repeatedly


def postgres_restarted(shutdown_signal: signal.Signals) -> FaultInjector:
    """Restart Postgres: fast with SIGINT, immediately and with recovery with SIGQUIT."""

    @asynccontextmanager
    async def inject(system: SystemUnderTest) -> AsyncIterator[None]:
        process = system.stack.postgres.process
        assert process is not None
        process.send_signal(shutdown_signal)
        await asyncio.to_thread(process.wait)
        try:
            yield
        finally:
            await asyncio.to_thread(system.stack.postgres.start)

    return inject


@asynccontextmanager
async def postgres_out_of_slots(system: SystemUnderTest) -> AsyncIterator[None]:
    """Use up every connection slot, including PgBouncer's, with a superuser's connections."""
    app = system.stack.service.app
    async with system.admin() as admin, contextlib.AsyncExitStack() as connections:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(asyncpg.PostgresError):
                    while True:
                        connection = await system.connect_as_admin()
                        connections.push_async_callback(connection.close)
                if not await admin.fetchval(BACKENDS, app):
                    break
                await admin.execute(TERMINATE.replace("$1", f"'{app}'"))
        yield


@asynccontextmanager
async def backends_terminated(system: SystemUnderTest) -> AsyncIterator[None]:
    """Terminate backends during a query, while they wait for a lock."""
    app = system.stack.service.app

    async def terminate(admin: Any, locker: Any) -> None:
        async with locker.transaction():
            # A write locks its tables in the same order, so this cannot deadlock.
            await locker.execute(f"LOCK TABLE {system.tables} IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(5):
                while not await admin.fetch(f"{TERMINATE} AND wait_event_type = 'Lock'", app):
                    await asyncio.sleep(0.01)

    async with (
        system.admin() as admin,
        system.admin() as locker,
        repeatedly(lambda: terminate(admin, locker), 0.2),
    ):
        yield
