"""The network slow, silent, cut, or losing what it carries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from infra.local.network import Filter
from infra.local.wire import Relay
from tests.faults.breakages import Place, again_and_again


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


# --- Names -------------------------------------------------------------------------------------


@asynccontextmanager
async def failed_over(place: Place) -> AsyncIterator[None]:
    """The old address is dead at once. At the end Postgres is at another one, and its name with
    it."""
    old = place.relay
    old.refuse()
    old.cut()
    yield
    postgres, host = place.stack.postgres, str(ip_address(old.host) + 1)
    new = Relay(postgres.host, postgres.port, at=(host, old.port))
    place.relays[place.at] = place.undo.enter_context(new)
    place.names.address = host


@asynccontextmanager
async def names_gone(place: Place) -> AsyncIterator[None]:
    place.names.silent = True
    yield
    place.names.silent = False


@asynccontextmanager
async def names_and_connections_gone(place: Place) -> AsyncIterator[None]:
    """All connections to Postgres, so that its name is needed for each."""

    async def cut() -> None:
        place.relay.cut()

    async with names_gone(place), again_and_again(cut, 0.2):
        yield
