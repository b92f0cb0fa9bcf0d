"""Fault injectors for the network (slow, silent, cut, losing data) and for name resolution."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address

from infra.local.network import Filter
from infra.local.tcp_proxy import Direction, TcpProxy
from tests.faults.injectors import FaultInjector, SystemUnderTest, repeatedly


@asynccontextmanager
async def delayed(system: SystemUnderTest) -> AsyncIterator[None]:
    system.proxy.delay = 0.3
    yield
    system.proxy.delay = 0


@asynccontextmanager
async def stalled(system: SystemUnderTest) -> AsyncIterator[None]:
    system.proxy.stall()
    yield
    system.proxy.resume()


@asynccontextmanager
async def cut(system: SystemUnderTest) -> AsyncIterator[None]:
    system.proxy.refuse()
    system.proxy.reset_connections()
    yield
    system.proxy.refuse(False)


def data_lost(direction: Direction) -> FaultInjector:
    """Lose data in one direction, then reset the connection.

    A lost request was not executed; the statement of a lost response was.
    """

    @asynccontextmanager
    async def inject(system: SystemUnderTest) -> AsyncIterator[None]:
        async def lose() -> None:
            system.proxy.drop(direction)
            await asyncio.sleep(0.15)  # long enough for callers to send requests
            system.proxy.reset_connections()

        async with repeatedly(lose, 0.3):
            yield

    return inject


@asynccontextmanager
async def black_holed(system: SystemUnderTest) -> AsyncIterator[None]:
    """Accept connections and requests, but never send anything back."""
    system.proxy.drop("requests", "responses")
    yield
    system.proxy.reset_connections()


def packets_lost(percent: int) -> FaultInjector:
    """Drop packets from and to PgBouncer's clients. Needs a network namespace."""

    @asynccontextmanager
    async def inject(system: SystemUnderTest) -> AsyncIterator[None]:
        packet_filter = Filter()
        packet_filter.drop_percent(percent, system.bouncer.port)
        yield
        packet_filter.drop_percent(0, system.bouncer.port)

    return inject


@asynccontextmanager
async def failed_over(system: SystemUnderTest) -> AsyncIterator[None]:
    """Fail over: the old address stops responding; in the end the name has a new address."""
    old_proxy = system.proxy
    old_proxy.refuse()
    old_proxy.reset_connections()
    yield
    postgres, host = system.stack.postgres, str(ip_address(old_proxy.host) + 1)
    new_proxy = TcpProxy(postgres.host, postgres.port, listen_on=(host, old_proxy.port))
    system.proxies[system.faulted_proxy] = system.undo.enter_context(new_proxy)
    system.name_server.address = host


@asynccontextmanager
async def name_server_silent(system: SystemUnderTest) -> AsyncIterator[None]:
    system.name_server.silent = True
    yield
    system.name_server.silent = False


@asynccontextmanager
async def name_server_silent_and_connections_reset(system: SystemUnderTest) -> AsyncIterator[None]:
    """Reset all connections repeatedly, so that each new one needs the name."""

    async def reset() -> None:
        system.proxy.reset_connections()

    queries_before = system.name_server.queries
    async with name_server_silent(system), repeatedly(reset, 0.2):
        yield
        assert system.name_server.queries > queries_before, "nothing queried the name"
