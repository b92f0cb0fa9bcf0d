"""A database that refuses: too full, or not for us; and a fault of ours. As the table says."""

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

from handler.connection import connector
from handler.problems import PROBLEM
from infra.database import roles
from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.conftest import administrator
from tests.events import http_api
from tests.integration.failing import READ, Logged, outcome, write

# --- Overload: what cannot serve one request cannot serve two ----------------------------------


@pytest.mark.parametrize(
    ("settings", "fault", "retry_after"),
    [
        (
            {
                "default_pool_size": 1,
                "reserve_pool_size": 0,
                "query_wait_timeout": 1,
                "idle_transaction_timeout": 60,  # the other's transaction is to last
            },
            "no server connection came free",
            "5",
        ),
        ({"max_client_conn": 1}, "PgBouncer is full", "2"),
    ],
    ids=["query_wait_timeout", "max_client_conn"],
)
async def test_a_full_pgbouncer_is_503_after_one_try(
    stack: Stack, tmp_path: Path, settings: dict[str, str | int], fault: str, retry_after: str
) -> None:
    with stack.another_pgbouncer(settings=settings) as bouncer:
        busy = await connector(stack.settings(through=bouncer))()
        async with Logged(stack.environment(bouncer), tmp_path) as fleet:
            async with busy.transaction():
                await busy.execute("SELECT 1")
                answer = await fleet.invoke(READ)
            await busy.close()
            assert outcome(answer) == (503, retry_after)
            assert fleet.attempts == 1
            assert fault in fleet.last["fault"]
            assert await fleet.is_well()


async def test_a_postgres_out_of_slots_is_503_after_one_try(
    own_stack: Stack, tmp_path: Path
) -> None:
    direct = {"DB_PORT": str(own_stack.postgres.port), "DB_SSLMODE": "disable"}
    password = own_stack.settings().password.get_secret_value()
    login = {**own_stack.postgres.admin, "user": APP, "password": password, "database": DATABASE}
    holders = [await asyncpg.connect(**login) for _ in range(17)]
    async with Logged(own_stack.environment() | direct, tmp_path) as fleet:
        answer = await fleet.invoke(READ)
        assert outcome(answer) == (503, "2")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == "53300"
        for holder in holders:
            await holder.close()
        assert await fleet.is_well()


async def test_a_postgres_that_is_down_behind_pgbouncer_is_503_after_one_try(
    own_stack: Stack, tmp_path: Path
) -> None:
    async with Logged(own_stack.environment(), tmp_path) as fleet:
        await fleet.invoke(READ)
        own_stack.postgres.stop()
        for _ in range(3):
            # At first PgBouncer has the client wait for a server connection.
            assert outcome(await fleet.invoke(READ)) in ((503, "1"), (503, "5"))
            assert fleet.attempts == 1
        assert fleet.last["fault"] == "PgBouncer cannot reach Postgres"
        own_stack.postgres.start()
        async with asyncio.timeout(5):
            while not await fleet.is_well():  # server_login_retry
                pass


async def test_a_standby_in_the_primary_s_place_takes_no_order_and_tells_of_those_there_are(
    own_stack: Stack, tmp_path: Path
) -> None:
    """As between a failover and the moment its name follows."""
    async with (
        administrator(own_stack) as admin,
        Logged(own_stack.environment(), tmp_path) as fleet,
    ):
        await admin.execute(f"ALTER ROLE {APP} SET default_transaction_read_only = on")
        assert outcome(await fleet.invoke(write("too early"))) == (503, "1")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == "25006"
        assert "cannot execute SELECT in a read-only transaction" in fleet.last["fault"], fleet.last
        assert await fleet.is_well()
        await admin.execute(f"ALTER ROLE {APP} RESET default_transaction_read_only")
        await admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = $1", APP
        )
        assert outcome(await fleet.invoke(write("too early"))) == (201, None)


# --- Not to be let in --------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["direct", "through PgBouncer"])
async def test_a_wrong_password_is_503_after_one_try_until_it_is_mended(
    own_stack: Stack, tmp_path: Path, way: str
) -> None:
    direct = {"DB_PORT": str(own_stack.postgres.port), "DB_SSLMODE": "disable"}
    environment = own_stack.environment() | (direct if way == "direct" else {})
    async with Logged(environment | {"DB_PASS": "the new one"}, tmp_path) as fleet:
        answer = await fleet.invoke(READ)
        assert outcome(answer) == (503, "1")
        assert fleet.attempts == 1
        assert fleet.last["sqlstate"] == ("28P01" if way == "direct" else "08P01")
        assert "the new one" not in json.dumps(fleet.last)
        admin = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
        await roles.set_password(admin, APP, "the new one")
        await admin.close()
        assert await fleet.is_well()


async def test_tls_that_is_refused_is_503_after_one_try(stack: Stack, tmp_path: Path) -> None:
    with (
        stack.another_pgbouncer(tls=False) as plain,
        stack.another_pgbouncer() as bouncer,
        Relay(plain.host, plain.port) as relay,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(relay.port)}
        async with Logged(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (503, "1")
            assert fleet.attempts == 1
            assert fleet.last["fault"] == "the server refused TLS"
            relay.lead_to(bouncer.host, bouncer.port)
            assert await fleet.is_well()


OURS, STRANGER = trustme.CA(), trustme.CA()
YESTERDAY = datetime.now(UTC) - timedelta(days=1)


@pytest.mark.parametrize(
    ("certificate", "fault", "remedy"),
    [
        (OURS.issue_cert("elsewhere.example", "127.0.0.2"), "mismatch", "DB_HOST"),
        (STRANGER.issue_cert("127.0.0.1"), "unable to get local issuer", "DB_SSLROOTCERT"),
        (OURS.issue_cert("127.0.0.1", not_after=YESTERDAY), "has expired", "in date"),
        (None, "self-signed", "DB_SSLROOTCERT"),
    ],
    ids=["of another name", "of another CA", "expired", "self-signed"],
)
async def test_a_certificate_that_will_not_do_is_503_after_one_try_until_it_is_mended(
    stack: Stack, tmp_path: Path, certificate: trustme.LeafCert | None, fault: str, remedy: str
) -> None:
    with stack.another_pgbouncer() as bouncer:
        OURS.cert_pem.write_to_path(str(tmp_path / "ours.pem"))
        environment = stack.environment(bouncer) | {"DB_SSLROOTCERT": str(tmp_path / "ours.pem")}
        async with Logged(environment, tmp_path) as fleet:
            await present(bouncer, certificate)
            answer = await fleet.invoke(READ)
            assert outcome(answer) == (503, "1")
            assert answer.payload["headers"]["content-type"] == PROBLEM
            assert fleet.attempts == 1
            assert re.match(f"TLS with the server failed: .*{fault}", fleet.last["fault"])
            assert remedy in fleet.last["remedy"]
            assert len((tmp_path / "sandbox-1.log").read_text().splitlines()) == 1
            await present(bouncer, OURS.issue_cert("127.0.0.1"))
            assert await fleet.is_well()


async def present(bouncer: PgBouncer, certificate: trustme.LeafCert | None) -> None:
    """Have it show `certificate`, or one that nobody signed but itself."""
    if certificate is None:
        chain, key = STRANGER.cert_pem, STRANGER.private_key_pem
    else:
        chain, key = certificate.cert_chain_pems[0], certificate.private_key_pem
    await asyncio.to_thread(bouncer.stop)
    bouncer.account.write(bouncer.folder / "server.pem", chain.bytes().decode())
    bouncer.account.write(bouncer.folder / "server.key", key.bytes().decode())
    await asyncio.to_thread(bouncer.start)


# --- A fault of ours ---------------------------------------------------------------------------


async def test_a_value_the_driver_cannot_send_is_500_and_pins_nothing(
    stack: Stack, tmp_path: Path
) -> None:
    """Parse was sent and Sync was not: without an end, PgBouncer keeps the server connection."""
    with stack.another_pgbouncer(settings={"default_pool_size": 1}) as bouncer:
        function = "tests.runtime.functions.unbounded"
        async with Logged(stack.environment(bouncer), tmp_path, handler=function) as fleet:
            bad = await fleet.invoke(http_api("GET", "/orders/2"))
            assert outcome(bad) == (500, None)
            assert fleet.attempts == 1
            assert fleet.last["sqlstate"] == "22000"
            [pool] = [row for row in bouncer.show("POOLS") if row["user"] == APP]
            assert pool["sv_active"] == 0
            assert await fleet.is_well()


# --- All at once -------------------------------------------------------------------------------


async def test_a_pool_exhausted_is_503_after_one_try(stack: Stack, tmp_path: Path) -> None:
    environment = stack.environment() | {"DB_POOL_TIMEOUT": "0.2"}
    function = "tests.runtime.functions.greedy"
    async with Logged(environment, tmp_path, handler=function) as fleet:
        answer = await fleet.invoke(http_api("GET", "/orders/2"))
        assert outcome(answer) == (503, "1")
        assert fleet.attempts == 1
        assert "DB_POOL_SIZE" in fleet.last["remedy"]
        assert await fleet.is_well()


async def test_two_hundred_orders_under_a_dying_pgbouncer_are_placed_once_each(
    own_stack: Stack, tmp_path: Path
) -> None:
    keys = [f"ledger-{number}" for number in range(200)]
    admin = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
    before = await admin.fetchval("SELECT count(*) FROM orders")
    sent: list[str] = []
    answered: dict[str, Any] = {}

    async def place(fleet: Fleet, key: str) -> bool:
        sent.append(key)
        answer = await fleet.invoke(write(key))
        if outcome(answer) == (503, "1"):
            await asyncio.sleep(0.2)  # a caller who waits before he goes on
            return False
        assert outcome(answer) == (201, None)
        answered[key] = json.loads(answer.payload["body"])["id"]
        return True

    async def disturb() -> None:
        bouncer = own_stack.pgbouncer
        for wanted in (20, 50, 80, 110, 140):
            while len(sent) < wanted:  # noqa: ASYNC110  # it rings no bell
                await asyncio.sleep(0.002)
            assert bouncer.process is not None
            os.kill(bouncer.process.pid, signal.SIGKILL)
            await asyncio.to_thread(bouncer.process.wait)
            await asyncio.sleep(0.05)
            await asyncio.to_thread(bouncer.start)

    async with Fleet(own_stack.environment(), concurrency=4, logs=tmp_path) as fleet:
        disturbing = asyncio.create_task(disturb())
        rest = iter(keys)

        async def work() -> None:
            for key in rest:
                await place(fleet, key)

        await asyncio.gather(*(work() for _ in range(4)))
        await asyncio.wait_for(disturbing, 30)
        for key in [key for key in keys if key not in answered]:
            assert await place(fleet, key), key
    rows = await admin.fetch("SELECT order_id FROM order_requests WHERE key LIKE 'ledger-%'")
    assert sorted(row["order_id"] for row in rows) == sorted(answered.values())
    assert len(set(answered.values())) == len(keys)
    assert await admin.fetchval("SELECT count(*) FROM orders") == before + len(keys)
    await admin.close()
