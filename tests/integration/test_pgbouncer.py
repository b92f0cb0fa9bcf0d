"""The settings of pgbouncer.ini have their intended effect on this machine's PgBouncer."""

import asyncio
import contextlib
import socket
import struct
from typing import Any

import asyncpg
import psycopg
import pytest

from handler.warm.database.connection import connector
from infra.database.roles import APP
from infra.local.stack import Stack
from tests.conftest import eventually, wait_for_transports_closed


def test_pooling_is_per_transaction_and_timeouts_are_below_the_callers(stack: Stack) -> None:
    config = {row["key"]: row["value"] for row in stack.pgbouncer.show("CONFIG")}
    assert config["pool_mode"] == "transaction"
    assert config["auth_type"] == "scram-sha-256"
    assert config["client_tls_protocols"] == "tlsv1.3"
    assert config["client_tls_sslmode"] == "require"
    assert int(config["default_pool_size"]) + int(config["reserve_pool_size"]) < 17
    assert float(config["query_wait_timeout"]) < float(config["query_timeout"]) < 29
    assert config["server_login_retry"] == "1"
    tracks_statements = "max_prepared_statements" in config  # since 1.21
    assert config["max_prepared_statements" if tracks_statements else "disable_pqexec"] == "0"


def test_client_idle_timeout_exceeds_the_handler_maximum_idle_age(stack: Stack) -> None:
    """A frozen sandbox acknowledges nothing, so keepalive and TCP timeouts also limit idle time."""
    config = {row["key"]: row["value"] for row in stack.pgbouncer.show("CONFIG")}
    max_idle = stack.settings().max_idle
    assert max_idle < float(config["client_idle_timeout"])
    assert max_idle < float(config["tcp_keepidle"])
    assert max_idle < float(config["tcp_user_timeout"]) / 1000


async def log_in(stack: Stack, **options: Any) -> None:
    """Log in to PgBouncer as the application, with these options of asyncpg."""
    settings = stack.settings()
    await asyncpg.connect(
        host=stack.pgbouncer.host,
        port=stack.pgbouncer.port,
        user=APP,
        password=settings.password.get_secret_value(),
        database=settings.name,
        **options,
    )


async def test_a_client_without_tls_is_rejected(stack: Stack) -> None:
    with pytest.raises(asyncpg.PostgresError, match="SSL required"):
        await log_in(stack, ssl=False)
    await wait_for_transports_closed()


def test_clients_connect_with_tls_1_3(stack: Stack) -> None:
    assert all(row["tls"].startswith("TLSv1.3/") for row in stack.pgbouncer.show("CLIENTS"))


def test_the_application_cannot_use_the_console(stack: Stack) -> None:
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        psycopg.connect(
            host=stack.pgbouncer.host,
            port=stack.pgbouncer.port,
            user=APP,
            password=stack.settings().password.get_secret_value(),
            dbname="pgbouncer",
            sslmode="require",
        )


async def test_an_unsupported_startup_parameter_is_rejected(stack: Stack) -> None:
    with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter"):
        await log_in(
            stack, ssl=stack.pgbouncer.ssl_context(), server_settings={"statement_timeout": "1s"}
        )
    await wait_for_transports_closed()


#: SSLRequest, the first message of a Postgres client that wants TLS.
SSL_REQUEST = struct.pack("!ii", 8, 80877103)


async def test_unfinished_logins_block_a_sandbox_only_for_seconds(stack: Stack) -> None:
    """PgBouncer's default for client_login_timeout is a minute."""
    with (
        contextlib.ExitStack() as undo,
        stack.another_pgbouncer(settings={"max_client_conn": 20}) as bouncer,
    ):
        connect = connector(stack.settings(through=bouncer))
        for _ in range(20):
            address = (bouncer.host, bouncer.port)
            client_socket = undo.enter_context(socket.create_connection(address))
            client_socket.sendall(SSL_REQUEST)
            assert client_socket.recv(1) == b"S"
        with pytest.raises(asyncpg.PostgresError, match="no more connections allowed"):
            await connect()
        async with asyncio.timeout(6):
            while True:
                with contextlib.suppress(asyncpg.PostgresError):
                    client = await connect()
                    break
                await asyncio.sleep(0.1)
        await client.close()
    await wait_for_transports_closed()


async def test_the_log_distinguishes_health_checks_from_killed_sandboxes(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        address = (bouncer.host, bouncer.port)
        socket.create_connection(address).close()  # a load balancer's health check
        reset = socket.create_connection(address)
        reset.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        reset.close()
        killed = await connector(stack.settings(through=bouncer))()
        killed._transport.get_extra_info(  # type: ignore[attr-defined]  # there is no public API
            "socket"
        ).shutdown(socket.SHUT_RDWR)  # the kernel sends a FIN
        killed.terminate()
        await (await connector(stack.settings(through=bouncer))()).close()
        eventually(lambda: bouncer.log_since_start().count("closing because: client") == 2)
        lines = [
            line
            for line in bouncer.log_since_start().splitlines()
            if "closing because: client" in line
        ]
        assert all(f"/{APP}@{bouncer.host}" in line for line in lines)
        assert sorted(line.split("because: ")[1].split(" (")[0] for line in lines) == [
            "client close request",
            "client unexpected eof",
        ]
        assert "(nouser)" not in bouncer.log_since_start()
