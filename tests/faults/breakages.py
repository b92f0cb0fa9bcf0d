"""The faults: each breaks one thing for the time of a `with` block, and mends it at its end.

Owns how each is provoked on real servers, and what is there to be broken (`Place`). Leaves what
callers see of it to `test_faults`.
"""

import asyncio
import contextlib
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import asyncpg
import trustme

from handler.connection import connector
from infra.database.roles import APP
from infra.local.network import Filter
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay

BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"


@dataclass
class Place:
    """What there is to break. `between`: a relay before PgBouncer or before Postgres, where the
    fault is one of that network; otherwise there is none."""

    stack: Stack
    bouncer: PgBouncer
    between: Relay | None = None

    @property
    def relay(self) -> Relay:
        assert self.between is not None
        return self.between

    async def connect_as_admin(self) -> Any:
        return await asyncpg.connect(**self.stack.postgres.admin, database=DATABASE)

    async def connect_as_client(self) -> Any:
        """Through PgBouncer and past every relay before it, with the application's name."""
        return await connector(self.stack.settings(through=self.bouncer))()


#: Entered, it begins; left, it has ended.
Fault = Callable[[Place], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def again_and_again(
    act: Callable[[], Awaitable[object]], pause: float
) -> AsyncIterator[None]:
    """`act` for as long as the block lasts; once at least, and each time to its end."""
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            await act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pause)

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        over.set()
        await repeating


# --- PgBouncer ---------------------------------------------------------------------------------


@asynccontextmanager
async def pgbouncer_killed(place: Place) -> AsyncIterator[None]:
    assert place.bouncer.process is not None
    place.bouncer.process.kill()
    place.bouncer.process.wait()
    yield
    await asyncio.to_thread(place.bouncer.start)


@asynccontextmanager
async def pgbouncer_restarted(place: Place) -> AsyncIterator[None]:
    async def restart() -> None:
        await asyncio.to_thread(place.bouncer.stop)
        await asyncio.to_thread(place.bouncer.start)

    async with again_and_again(restart, 1):
        yield


@asynccontextmanager
async def pgbouncer_paused(place: Place) -> AsyncIterator[None]:
    with await asyncio.to_thread(place.bouncer.console) as console:
        await asyncio.to_thread(console.execute, "PAUSE")  # comes back when nothing runs any more
        yield
        await asyncio.to_thread(console.execute, "RESUME")


@asynccontextmanager
async def pgbouncer_reloaded(place: Place) -> AsyncIterator[None]:
    with await asyncio.to_thread(place.bouncer.console) as console:

        async def reload() -> None:
            await asyncio.to_thread(console.execute, "RELOAD")

        async with again_and_again(reload, 0.1):
            yield


@asynccontextmanager
async def pgbouncer_full(place: Place) -> AsyncIterator[None]:
    """Every sandbox loses its connection, and others take the places first."""
    place.relay.refuse()
    place.relay.cut()
    async with contextlib.AsyncExitStack() as strangers:
        with contextlib.suppress(asyncpg.PostgresError):
            while True:
                stranger = await place.connect_as_client()
                strangers.push_async_callback(stranger.close)
        place.relay.refuse(False)
        yield


@asynccontextmanager
async def pool_exhausted(place: Place) -> AsyncIterator[None]:
    """Others hold every server connection in transactions, which they go on with."""
    size = int(place.bouncer.settings["default_pool_size"])
    strangers = [await place.connect_as_client() for _ in range(size)]
    for stranger in strangers:
        await stranger.execute("BEGIN")

    async def go_on() -> None:
        for stranger in strangers:
            await stranger.execute("SELECT 1")

    async with again_and_again(go_on, 0.5):
        yield
    for stranger in strangers:
        await stranger.execute("ROLLBACK")
        await stranger.close()


@asynccontextmanager
async def certificate_of_another_ca(place: Place) -> AsyncIterator[None]:
    names = ("server.pem", "server.key")
    right = [(place.bouncer.folder / name).read_text() for name in names]
    wrong = trustme.CA().issue_cert("localhost", place.bouncer.host)
    chain = b"".join(blob.bytes() for blob in wrong.cert_chain_pems).decode()

    async def restart_with(*contents: str) -> None:
        await asyncio.to_thread(place.bouncer.stop)
        for name, content in zip(names, contents, strict=True):
            place.bouncer.account.write(place.bouncer.folder / name, content)
        await asyncio.to_thread(place.bouncer.start)

    await restart_with(chain, wrong.private_key_pem.bytes().decode())
    yield
    await restart_with(*right)


@asynccontextmanager
async def client_silent_with_locks(place: Place) -> AsyncIterator[None]:
    """A sandbox frozen inside a transaction, with Postgres' own limit off: the pooler's counts."""
    silent = await place.connect_as_client()
    await silent.execute("BEGIN")
    await silent.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
    await silent.execute("LOCK TABLE order_requests IN ACCESS EXCLUSIVE MODE")
    admin = await place.connect_as_admin()
    held = "SELECT count(*) FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    held += " AND relation = 'order_requests'::regclass"
    assert await admin.fetchval(held) == 1
    yield
    async with asyncio.timeout(8):
        while await admin.fetchval(held):  # noqa: ASYNC110  # it rings no bell
            await asyncio.sleep(0.02)
    await admin.close()
    silent.terminate()


# --- Postgres ----------------------------------------------------------------------------------


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
    admin = await place.connect_as_admin()
    async with contextlib.AsyncExitStack() as greedy:
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
    await admin.close()


@asynccontextmanager
async def backends_terminated(place: Place) -> AsyncIterator[None]:
    """Those in mid-query: each time a lock makes some wait, and those that wait are ended."""
    admin, locker = await place.connect_as_admin(), await place.connect_as_admin()

    async def terminate() -> None:
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders, order_requests IN ACCESS EXCLUSIVE MODE")
            async with asyncio.timeout(5):
                while not await admin.fetch(f"{TERMINATE} AND wait_event_type = 'Lock'", APP):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)

    async with again_and_again(terminate, 0.2):
        yield
    await admin.close()
    await locker.close()


# --- The network -------------------------------------------------------------------------------


@asynccontextmanager
async def delayed(place: Place) -> AsyncIterator[None]:
    place.relay.delay = 0.3
    yield
    place.relay.delay = 0


@asynccontextmanager
async def stalled(place: Place) -> AsyncIterator[None]:
    place.relay.stall()
    yield
    place.relay.resume()


@asynccontextmanager
async def cut(place: Place) -> AsyncIterator[None]:
    place.relay.refuse()
    place.relay.cut()
    yield
    place.relay.refuse(False)


@asynccontextmanager
async def answers_lost(place: Place) -> AsyncIterator[None]:
    """What was asked arrives and is done; then the connection is reset."""

    async def lose() -> None:
        place.relay.swallow_answers()
        await asyncio.sleep(0.15)  # long enough for callers to ask
        place.relay.cut()
        place.relay.swallow_answers(False)

    async with again_and_again(lose, 0.3):
        yield


@asynccontextmanager
async def packets_lost(place: Place) -> AsyncIterator[None]:
    """A tenth of those from and to PgBouncer's clients. In a network of one's own."""
    losing = Filter()
    losing.lose(10, place.bouncer.port)
    yield
    losing.lose(0, place.bouncer.port)
