"""The network slow, silent, cut, or losing what it carries."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from infra.local.network import Filter
from infra.local.wire import Direction, Relay
from tests.faults.breakages import Fault, Place, again_and_again


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


def lost(direction: Direction) -> Fault:
    """In one direction; a moment later the connection is reset. Where answers are lost, what was
    asked has been done; where questions are, it never will be."""

    @asynccontextmanager
    async def fault(place: Place) -> AsyncIterator[None]:
        async def lose() -> None:
            place.relay.swallow(direction)
            await asyncio.sleep(0.15)  # long enough for callers to ask
            place.relay.cut()

        async with again_and_again(lose, 0.3):
            yield

    return fault


@asynccontextmanager
async def unanswered(place: Place) -> AsyncIterator[None]:
    """New connections are taken, and questions too; nothing ever comes back."""
    place.relay.swallow("questions", "answers")
    yield
    place.relay.cut()


def packets_lost(percent: int) -> Fault:
    """Of those from and to PgBouncer's clients. In a network of one's own."""

    @asynccontextmanager
    async def fault(place: Place) -> AsyncIterator[None]:
        losing = Filter()
        losing.lose(percent, place.bouncer.port)
        yield
        losing.lose(0, place.bouncer.port)

    return fault


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
    """All connections, again and again, so that the name is needed for each."""

    async def cut() -> None:
        place.relay.cut()

    asked = place.names.asked
    async with names_gone(place), again_and_again(cut, 0.2):
        yield
        assert place.names.asked > asked, "nobody asked for the name"
