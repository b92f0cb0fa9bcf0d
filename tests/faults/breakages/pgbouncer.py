"""PgBouncer killed, restarted, told to wait, or with no place left."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import pytest
import trustme

from infra.database.roles import APP
from tests.faults.breakages import Place, again_and_again


@asynccontextmanager
async def pgbouncer_killed(place: Place) -> AsyncIterator[None]:
    assert place.bouncer.process is not None
    place.bouncer.process.kill()
    place.bouncer.process.wait()
    yield
    await asyncio.to_thread(place.bouncer.start)


@asynccontextmanager
async def one_of_two_killed(place: Place) -> AsyncIterator[None]:
    """The load balancer before them does not notice."""
    assert place.another is not None
    assert place.another.process is not None
    served = await asyncio.to_thread(place.another.show, "CLIENTS")
    assert any(row["user"] == APP for row in served), "it has no sandbox to lose"
    place.another.process.kill()
    place.another.process.wait()
    yield
    await asyncio.to_thread(place.another.start)


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

        async def take_places() -> None:
            while True:
                stranger = await place.connect_as_client()
                strangers.push_async_callback(stranger.close)

        with pytest.raises(asyncpg.PostgresError, match="no more connections allowed"):
            await take_places()
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
