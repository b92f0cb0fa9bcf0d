"""Failures of the database are answered with the documented status, and the service recovers."""

import asyncio
import json
import os
import re
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trustme

from handler.warm.database.connection import connector
from handler.warm.http.problems import PROBLEM
from infra.database import roles
from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import PgConnection, administrator, log_lines
from tests.events import http_api
from tests.integration.failing_fleet import READ, LoggedFleet, outcome, write

HEALTH = http_api("GET", "/health")

# --- Overloaded or unavailable servers: not retried ----------------------------------------------


@pytest.mark.parametrize(
    ("settings", "cause", "retry_after"),
    [
        (
            {
                "default_pool_size": 1,
                "reserve_pool_size": 0,
                "query_wait_timeout": 1,
                "idle_transaction_timeout": 60,  # the other client's transaction must last
            },
            "PgBouncer had no free server connection",
            "5",
        ),
        ({"max_client_conn": 1}, "PgBouncer is full", "2"),
    ],
    ids=["query_wait_timeout", "max_client_conn"],
)
async def test_a_full_pgbouncer_returns_503_without_a_retry(
    stack: Stack, tmp_path: Path, settings: dict[str, str | int], cause: str, retry_after: str
) -> None:
    with stack.another_pgbouncer(settings=settings) as bouncer:
        other_client = await connector(stack.settings(through=bouncer))()
        async with LoggedFleet(stack.environment(bouncer), tmp_path) as fleet:
            # The sandbox starts first: its cold start could exceed idle_transaction_timeout.
            assert outcome(await fleet.invoke(HEALTH)) == (200, None)
            async with other_client.transaction():
                await other_client.execute("SELECT 1")
                result = await fleet.invoke(READ)
            await other_client.close()
            assert outcome(result) == (503, retry_after)
            assert fleet.attempts == 1
            assert cause in fleet.last["cause"]
            assert await fleet.recovers()


async def test_a_postgres_out_of_connections_returns_503_without_a_retry(
    own_stack: Stack, tmp_path: Path
) -> None:
    direct = {"DB_PORT": str(own_stack.postgres.port), "DB_SSLMODE": "disable"}
    # As the owner, because the application role has a lower connection limit.
    password = own_stack.settings(user=roles.OWNER).password.get_secret_value()
    owner = {"user": roles.OWNER, "password": password, "database": DATABASE}
    login = {**own_stack.postgres.admin, **owner}
    holders = [await asyncpg.connect(**login) for _ in range(17)]
    async with LoggedFleet(own_stack.environment() | direct, tmp_path) as fleet:
        assert outcome(await fleet.invoke(READ)) == (503, "2")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == "53300"
        for holder in holders:
            await holder.close()
        assert await fleet.recovers()


async def test_a_stopped_postgres_behind_pgbouncer_returns_503_without_a_retry(
    own_stack: Stack, tmp_path: Path
) -> None:
    async with LoggedFleet(own_stack.environment(), tmp_path) as fleet:
        await fleet.invoke(READ)
        own_stack.postgres.stop()
        for _ in range(3):
            # At first PgBouncer makes the client wait for a server connection.
            assert outcome(await fleet.invoke(READ)) in ((503, "1"), (503, "5"))
            assert fleet.attempts == 1
        assert fleet.last["cause"] == "PgBouncer cannot reach Postgres"
        own_stack.postgres.start()
        async with asyncio.timeout(5):
            while not await fleet.recovers():  # PgBouncer waits for server_login_retry
                pass


async def test_a_standby_in_place_of_the_primary_serves_reads_only(
    own_stack: Stack, tmp_path: Path
) -> None:
    """This happens between a failover and the update of the DNS name."""
    postgres = own_stack.postgres
    postgres.stop()
    postgres.account.write(postgres.data / "standby.signal", "")
    postgres.start()
    async with LoggedFleet(own_stack.environment(), tmp_path) as fleet:
        assert outcome(await fleet.invoke(write("too early"))) == (503, "1")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == "25006"
        assert "cannot execute INSERT in a read-only transaction" in fleet.last["cause"], fleet.last
        assert await fleet.recovers()
        async with administrator(own_stack) as admin:
            assert await admin.fetchval("SELECT pg_promote()")
        assert outcome(await fleet.invoke(write("too early"))) == (201, None)


# --- Rejected logins -----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["direct", "through PgBouncer"])
async def test_a_wrong_password_returns_503_until_it_is_fixed_and_is_not_retried(
    own_stack: Stack, tmp_path: Path, path: str
) -> None:
    direct = {"DB_PORT": str(own_stack.postgres.port), "DB_SSLMODE": "disable"}
    environment = own_stack.environment() | (direct if path == "direct" else {})
    async with LoggedFleet(environment | {"DB_PASS": "the new one"}, tmp_path) as fleet:
        assert outcome(await fleet.invoke(READ)) == (503, "1")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == ("28P01" if path == "direct" else "08P01")
        assert "the new one" not in json.dumps(fleet.last)
        async with administrator(own_stack) as admin:
            await roles.set_password(admin, APP, "the new one")
        assert await fleet.recovers()


async def test_rejected_tls_returns_503_without_a_retry(stack: Stack, tmp_path: Path) -> None:
    with (
        stack.another_pgbouncer(tls=False) as plain,
        stack.another_pgbouncer() as bouncer,
        TcpProxy(plain.host, plain.port) as proxy,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(proxy.port)}
        async with LoggedFleet(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (503, "1")
            assert fleet.attempts == 1
            assert fleet.last["cause"] == "the server refused TLS"
            proxy.redirect_to(bouncer.host, bouncer.port)
            assert await fleet.recovers()


OUR_CA, OTHER_CA = trustme.CA(), trustme.CA()
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    ("certificate", "cause", "hint"),
    [
        (OUR_CA.issue_cert("elsewhere.example", "127.0.0.2"), "mismatch", "DB_HOST"),
        (OTHER_CA.issue_cert("127.0.0.1"), "unable to get local issuer", "DB_SSLROOTCERT"),
        (OUR_CA.issue_cert("127.0.0.1", not_after=YESTERDAY), "has expired", "valid now"),
        (None, "self-signed", "DB_SSLROOTCERT"),
    ],
    ids=["for another name", "from another CA", "expired", "self-signed"],
)
async def test_an_invalid_certificate_returns_503_until_it_is_fixed_and_is_not_retried(
    stack: Stack, tmp_path: Path, certificate: trustme.LeafCert | None, cause: str, hint: str
) -> None:
    with stack.another_pgbouncer() as bouncer:
        OUR_CA.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
        environment = stack.environment(bouncer) | {"DB_SSLROOTCERT": str(tmp_path / "ours.pem")}
        async with LoggedFleet(environment, tmp_path) as fleet:
            await use_certificate(bouncer, certificate)
            result = await fleet.invoke(READ)
            assert outcome(result) == (503, "1")
            assert result.payload["headers"]["content-type"] == PROBLEM
            assert fleet.attempts == 1
            assert re.match(f"TLS with the server failed: .*{cause}", fleet.last["cause"])
            assert hint in fleet.last["hint"]
            assert len((tmp_path / "sandbox-1.log").read_text().splitlines()) == 1
            await use_certificate(bouncer, OUR_CA.issue_cert("127.0.0.1"))
            assert await fleet.recovers()


async def use_certificate(bouncer: PgBouncer, certificate: trustme.LeafCert | None) -> None:
    """Restart PgBouncer with `certificate`, or with a self-signed one."""
    if certificate is None:
        chain, key = OTHER_CA.cert_pem, OTHER_CA.private_key_pem
    else:
        chain, key = certificate.cert_chain_pems[0], certificate.private_key_pem
    await asyncio.to_thread(bouncer.stop)
    bouncer.account.write(bouncer.folder / "server.pem", chain.bytes().decode())
    bouncer.account.write(bouncer.folder / "server.key", key.bytes().decode())
    await asyncio.to_thread(bouncer.start)


async def test_a_failed_password_lookup_is_named_as_the_cause(
    own_stack: Stack, tmp_path: Path
) -> None:
    async with (
        administrator(own_stack) as admin,
        LoggedFleet(own_stack.environment(), tmp_path) as fleet,
    ):
        lookup = f"EXECUTE ON FUNCTION pooler.lookup(text) FROM {roles.LOOKUP}"
        await admin.execute(f"REVOKE {lookup}")
        assert outcome(await fleet.invoke(READ)) == (503, "1")
        assert "PgBouncer cannot look up the login: bouncer config error" in fleet.last["cause"]
        assert "auth_query" in fleet.last["hint"]
        await admin.execute(f"GRANT {lookup.replace('FROM', 'TO')}")
        assert await fleet.recovers()


async def test_every_cold_sandbox_gets_503_while_postgres_is_down(
    own_stack: Stack, tmp_path: Path
) -> None:
    """The first sandbox gives up before PgBouncer reports that it cannot connect."""
    logs = [tmp_path / f"sandbox-{number}.log" for number in (1, 2, 3)]
    with own_stack.another_pgbouncer() as bouncer:
        own_stack.postgres.stop()
        async with Fleet(own_stack.environment(bouncer), concurrency=3, logs=tmp_path) as fleet:
            results = await asyncio.gather(*(fleet.invoke(READ) for _ in range(3)))
        assert {result.payload["statusCode"] for result in results} == {503}
        lines = [line for path in logs for line in log_lines(path.read_text())]
        assert len(lines) == 3
        assert all("Postgres" in line["hint"] for line in lines), lines


# --- Application errors --------------------------------------------------------------------------


async def test_the_connection_is_released_if_the_driver_cannot_send_a_value(
    stack: Stack, tmp_path: Path
) -> None:
    """asyncpg encodes the value only after it has prepared the statement."""
    with stack.another_pgbouncer(settings={"default_pool_size": 1}) as bouncer:
        function = "tests.runtime.functions.unbounded"
        async with LoggedFleet(stack.environment(bouncer), tmp_path, handler=function) as fleet:
            assert outcome(await fleet.invoke(http_api("GET", "/orders/2"))) == (500, None)
            assert fleet.attempts == 1
            assert fleet.last["sqlstate"] == "22000"
            [pool] = [row for row in bouncer.show("POOLS") if row["user"] == APP]
            assert pool["sv_active"] == 0
            assert await fleet.recovers()


# --- Exhausted pool, restart under load ----------------------------------------------------------


async def test_an_exhausted_pool_returns_503_without_a_retry(stack: Stack, tmp_path: Path) -> None:
    environment = stack.environment() | {"DB_POOL_TIMEOUT": "0.2"}
    function = "tests.runtime.functions.greedy"
    async with LoggedFleet(environment, tmp_path, handler=function) as fleet:
        assert outcome(await fleet.invoke(http_api("GET", "/orders/2"))) == (503, "1")
        assert fleet.attempts == 1
        assert "DB_POOL_SIZE" in fleet.last["hint"]
        assert await fleet.recovers()


async def test_two_hundred_orders_are_created_once_each_while_pgbouncer_restarts(
    own_stack: Stack, tmp_path: Path, own_admin: PgConnection
) -> None:
    keys = [f"ledger-{number}" for number in range(200)]
    before = await own_admin.fetchval("SELECT count(*) FROM orders")
    sent: list[str] = []
    order_ids: dict[str, Any] = {}

    async def place(fleet: Fleet, key: str) -> bool:
        sent.append(key)
        result = await fleet.invoke(write(key))
        if outcome(result) == (503, "1"):
            await asyncio.sleep(0.2)  # a caller's backoff
            return False
        assert outcome(result) == (201, None)
        order_ids[key] = json.loads(result.payload["body"])["id"]
        return True

    async def restart_repeatedly() -> None:
        bouncer = own_stack.pgbouncer
        for count in (20, 50, 80, 110, 140):
            while len(sent) < count:
                await asyncio.sleep(0.002)
            assert bouncer.process is not None
            os.kill(bouncer.process.pid, signal.SIGKILL)
            await asyncio.to_thread(bouncer.process.wait)
            await asyncio.sleep(0.05)
            await asyncio.to_thread(bouncer.start)

    async with Fleet(own_stack.environment(), concurrency=4, logs=tmp_path) as fleet:
        restarts = asyncio.create_task(restart_repeatedly())
        remaining_keys = iter(keys)

        async def place_remaining() -> None:
            for key in remaining_keys:
                await place(fleet, key)

        await asyncio.gather(*(place_remaining() for _ in range(4)))
        await asyncio.wait_for(restarts, 30)
        for key in [key for key in keys if key not in order_ids]:
            assert await place(fleet, key), key
    rows = await own_admin.fetch("SELECT order_id FROM order_requests WHERE key LIKE 'ledger-%'")
    assert sorted(row["order_id"] for row in rows) == sorted(order_ids.values())
    assert len(set(order_ids.values())) == len(keys)
    assert await own_admin.fetchval("SELECT count(*) FROM orders") == before + len(keys)
