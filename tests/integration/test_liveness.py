"""A connection lost while idle is replaced before its next use, without a round trip."""

import asyncio
import socket
from pathlib import Path

import pytest
from sqlalchemy import text

from handler.warm.database.connection import connector
from handler.warm.database.liveness import socket_of, was_closed
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.events import http_api
from tests.integration.engines import handler_engine


async def test_a_pgbouncer_restart_between_invocations_needs_no_retry(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            for _ in range(3):
                result = await fleet.invoke(http_api("GET", "/orders/1"))
                assert result.payload["statusCode"] == 200
                bouncer.stop()
                bouncer.start()
    assert "retrying" not in (tmp_path / "sandbox-1.log").read_text()


async def test_an_idle_client_closed_by_pgbouncer_needs_no_retry(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            async with asyncio.timeout(10):
                while "client_idle_timeout" not in bouncer.log_since_start():
                    await asyncio.sleep(0.05)  # PgBouncer's own clock
            assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200
    assert "retrying" not in (tmp_path / "sandbox-1.log").read_text()


@pytest.mark.parametrize(("max_idle", "connections"), [("240", 0), ("0.01", 1)])
async def test_a_connection_past_its_maximum_idle_age_is_replaced(
    stack: Stack, max_idle: str, connections: int
) -> None:
    with TcpProxy(stack.pgbouncer.host, stack.pgbouncer.port) as proxy:
        environment = stack.environment() | {"DB_PORT": str(proxy.port), "DB_MAX_IDLE": max_idle}
        async with Fleet(environment) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            await asyncio.sleep(0.05)
            proxy.reset_counters()
            assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200
            assert proxy.connections == connections


async def test_checkouts_keep_a_live_connection(stack: Stack) -> None:
    with TcpProxy(stack.pgbouncer.host, stack.pgbouncer.port) as proxy:
        settings = stack.settings(through=stack.pgbouncer, port=proxy.port)
        async with handler_engine(settings) as engine:
            for _ in range(300):
                async with engine.connect() as connection:
                    await connection.execute(text("SELECT 1"))
            assert proxy.connections == 1


@pytest.mark.parametrize("tls", [False, True])
async def test_a_lost_connection_is_detected_at_any_loop_iteration(stack: Stack, tls: bool) -> None:
    """With TLS the socket is closed one iteration before asyncpg notices."""
    with stack.another_pgbouncer(tls=tls) as bouncer:
        connection = await connector(stack.settings(through=bouncer))()
        assert not was_closed(connection)
        bouncer.stop()
        async with asyncio.timeout(5):
            while not connection.is_closed():
                assert was_closed(connection)
                await asyncio.sleep(0)


async def test_asyncpg_private_socket_is_found_with_its_options(stack: Stack) -> None:
    for settings in (stack.settings(), stack.settings(through=stack.pgbouncer)):
        connection = await connector(settings)()
        try:
            tcp_socket = socket_of(connection)
            assert tcp_socket is not None
            assert tcp_socket.getpeername()[1] == settings.port
            assert tcp_socket.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            assert tcp_socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 3000
        finally:
            await connection.close()
