"""A connection that died while nobody used it is replaced before it is used, for no round trip."""

import asyncio
import socket
from pathlib import Path

import pytest
from sqlalchemy import text

from handler.connection import connector, socket_of, was_closed
from handler.engine import create_engine
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.events import http_api


async def test_a_pgbouncer_restarted_between_invocations_costs_no_try(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            for _ in range(3):
                answer = await fleet.invoke(http_api("GET", "/orders/1"))
                assert answer.payload["statusCode"] == 200
                bouncer.stop()
                bouncer.start()
    assert "trying again" not in (tmp_path / "sandbox-1.log").read_text()


async def test_a_client_that_pgbouncer_closed_for_idleness_costs_no_try(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            async with asyncio.timeout(10):
                while "client_idle_timeout" not in bouncer.said():  # noqa: ASYNC110  # its clock
                    await asyncio.sleep(0.05)  # PgBouncer's own clock
            answer = await fleet.invoke(http_api("GET", "/orders/1"))
            assert answer.payload["statusCode"] == 200
    assert "trying again" not in (tmp_path / "sandbox-1.log").read_text()


@pytest.mark.parametrize(("max_idle", "connections"), [("240", 0), ("0.01", 1)])
async def test_past_its_greatest_idle_age_a_connection_is_made_anew_unasked(
    stack: Stack, max_idle: str, connections: int
) -> None:
    with Relay(stack.pgbouncer.host, stack.pgbouncer.port) as relay:
        environment = stack.environment() | {"DB_PORT": str(relay.port), "DB_MAX_IDLE": max_idle}
        async with Fleet(environment) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            await asyncio.sleep(0.05)
            relay.reset()
            answer = await fleet.invoke(http_api("GET", "/orders/1"))
            assert answer.payload["statusCode"] == 200
            assert relay.connections == connections


async def test_checkouts_of_a_live_connection_never_replace_it(stack: Stack) -> None:
    with Relay(stack.pgbouncer.host, stack.pgbouncer.port) as relay:
        settings = stack.settings(through=stack.pgbouncer, port=relay.port)
        runtime = create_engine(settings)
        try:
            for _ in range(300):
                async with runtime.connect() as held:
                    await held.execute(text("SELECT 1"))
            assert relay.connections == 1
        finally:
            await runtime.dispose()


@pytest.mark.parametrize("tls", [False, True])
async def test_at_every_turn_of_the_loop_a_lost_connection_is_told_from_a_live_one(
    stack: Stack, tls: bool
) -> None:
    """With TLS the socket is gone one turn before asyncpg hears of it."""
    with stack.another_pgbouncer(tls=tls) as bouncer:
        raw = await connector(stack.settings(through=bouncer))()
        assert not was_closed(raw)
        bouncer.stop()
        async with asyncio.timeout(5):
            while not raw.is_closed():
                assert was_closed(raw)
                await asyncio.sleep(0)


async def test_asyncpg_s_private_socket_is_where_it_was_with_its_options(stack: Stack) -> None:
    for settings in (stack.settings(), stack.settings(through=stack.pgbouncer)):
        raw = await connector(settings)()
        try:
            sock = socket_of(raw)
            assert sock is not None
            assert sock.getpeername()[1] == settings.port
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        finally:
            await raw.close()
