"""Postgres shut down, full, or ending its own sessions."""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from infra.database.roles import APP
from tests.faults.breakages import BACKENDS, TERMINATE, Fault, Place, again_and_again


def postgres_restarted(how: signal.Signals) -> Fault:
    """`how`: SIGINT is a fast shutdown, SIGQUIT an immediate one, with recovery at the start."""

    @asynccontextmanager
    async def fault(place: Place) -> AsyncIterator[None]:
        process = place.stack.postgres.process
        assert process is not None
        process.send_signal(how)
        await asyncio.to_thread(process.wait)
        try:
            yield
        finally:
            await asyncio.to_thread(place.stack.postgres.start)

    return fault


@asynccontextmanager
async def postgres_out_of_slots(place: Place) -> AsyncIterator[None]:
    """A superuser's program takes every slot, those of PgBouncer's connections too."""
    async with place.admin() as admin, contextlib.AsyncExitStack() as greedy:
        async with asyncio.timeout(10):
            while True:
                with contextlib.suppress(asyncpg.PostgresError):
                    while True:
                        connection = await place.connect_as_admin()
                        greedy.push_async_callback(connection.close)
                if not await admin.fetchval(BACKENDS, APP):
                    break
                await admin.execute(TERMINATE.replace("$1", f"'{APP}'"))
        yield


@asynccontextmanager
async def backends_terminated(place: Place) -> AsyncIterator[None]:
    """Those in mid-query: each time a lock makes some wait, and those that wait are ended."""

    async def terminate(admin: Any, locker: Any) -> None:
        async with locker.transaction():
            # In the order in which a write takes them.
            await locker.execute("LOCK TABLE order_requests, orders IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(5):
                while not await admin.fetch(f"{TERMINATE} AND wait_event_type = 'Lock'", APP):  # noqa: ASYNC110  # it rings no bell
                    await asyncio.sleep(0.01)

    async with (
        place.admin() as admin,
        place.admin() as locker,
        again_and_again(lambda: terminate(admin, locker), 0.2),
    ):
        yield
