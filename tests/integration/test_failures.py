"""Each way the database fails: provoked for real, answered as the table says, and well after it.

The traffic goes through a real PgBouncer from a real runtime client; `attempts` is what the
handler's own log says.
"""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from handler.connection import connector
from infra.database import roles
from infra.database.roles import APP
from infra.local.fleet import Answer, Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.conftest import log_lines
from tests.events import http_api

READ = http_api("GET", "/orders/1")
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"


def write(key: str) -> dict[str, Any]:
    body = json.dumps({"customer_name": "Ivory Drums"})
    return http_api("POST", "/orders", body=body, idempotency_key=key)


def outcome(answer: Answer) -> tuple[int, str | None]:
    """Status and Retry-After."""
    return answer.payload["statusCode"], answer.payload["headers"].get("retry-after")


class Logged(Fleet):
    """A fleet of one sandbox whose log says what the last invocation was."""

    def __init__(self, environment: dict[str, str], folder: Path, **more: Any) -> None:
        super().__init__(environment, logs=folder, **more)
        self._log = folder / "sandbox-1.log"

    @property
    def last(self) -> dict[str, Any]:
        return log_lines(self._log.read_text())[-1]

    @property
    def attempts(self) -> int:
        return int(self.last["attempts"])

    async def is_well(self) -> bool:
        """Whether a good request follows in the same sandbox."""
        answer = await self.invoke(READ)
        return outcome(answer) == (200, None) and not answer.cold


@pytest.fixture
async def locker(stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A second administrator, to hold locks that queries wait for."""
    connection = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    yield connection
    await connection.close()


@dataclass
class Failing:
    """A fleet whose queries can be made to wait, while something is done to what they run on."""

    fleet: Logged
    bouncer: PgBouncer
    relay: Relay
    admin: Any
    locker: Any

    async def mid_query(
        self, event: dict[str, Any], act: Callable[[], Awaitable[object]]
    ) -> Answer:
        async with self.locker.transaction():
            await self.locker.execute("LOCK TABLE orders, order_requests IN ACCESS EXCLUSIVE MODE")
            answer = asyncio.create_task(self.fleet.invoke(event))
            async with asyncio.timeout(5):
                while not await self.admin.fetchval(BLOCKED, APP):  # noqa: ASYNC110  # no bell
                    await asyncio.sleep(0.01)
            await act()
        return await answer


@pytest.fixture
async def failing(
    request: pytest.FixtureRequest, stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> AsyncIterator[Failing]:
    """Its parameters: settings of PgBouncer, and of the handler (`DB_*`)."""
    given = getattr(request, "param", {})
    settings = {name: value for name, value in given.items() if not name.startswith("DB_")}
    of_handler = {name: value for name, value in given.items() if name.startswith("DB_")}
    with (
        stack.another_pgbouncer(settings=settings) as bouncer,
        Relay(bouncer.host, bouncer.port) as relay,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(relay.port)} | of_handler
        async with Logged(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (200, None)
            yield Failing(fleet, bouncer, relay, admin, locker)
            assert await fleet.is_well()


# --- Lost in mid-query: nobody knows whether it ran, and it may run twice ----------------------


@pytest.mark.parametrize("event", [READ, write("backend")], ids=["read", "write"])
async def test_a_backend_killed_in_mid_query_costs_one_more_try(
    failing: Failing, event: dict[str, Any]
) -> None:
    async def kill() -> None:
        await failing.admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE usename = $1 AND wait_event_type = 'Lock'",
            APP,
        )

    answer = await failing.mid_query(event, kill)
    assert outcome(answer) in ((200, None), (201, None))
    assert failing.fleet.attempts == 2


@pytest.mark.parametrize("event", [READ, write("cut")], ids=["read", "write"])
async def test_a_connection_cut_in_mid_query_costs_one_more_try(
    failing: Failing, event: dict[str, Any]
) -> None:
    async def cut() -> None:
        failing.relay.cut()

    answer = await failing.mid_query(event, cut)
    assert outcome(answer) in ((200, None), (201, None))
    assert failing.fleet.attempts == 2


async def test_a_pgbouncer_killed_in_mid_query_is_503_after_a_second_try_in_vain(
    failing: Failing,
) -> None:
    async def kill() -> None:
        assert failing.bouncer.process is not None
        failing.bouncer.process.kill()
        failing.bouncer.process.wait()

    answer = await failing.mid_query(READ, kill)
    assert outcome(answer) == (503, "1")
    assert failing.fleet.attempts == 2
    failing.bouncer.start()


async def test_a_write_whose_answer_was_lost_is_one_order(failing: Failing) -> None:
    """It ran, but nobody said so: tried again under its key, it finds itself."""
    await failing.fleet.invoke(write("found"))  # so that this one is a single round trip
    before = await failing.admin.fetchval("SELECT count(*) FROM orders")
    failing.relay.swallow_answers()
    answer = asyncio.create_task(failing.fleet.invoke(write("lost")))
    async with asyncio.timeout(5):
        while await failing.admin.fetchval("SELECT count(*) FROM orders") == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    failing.relay.cut()
    failing.relay.swallow_answers(False)
    assert outcome(await answer) == (201, None)
    assert failing.fleet.attempts == 2
    assert (await answer).payload["headers"]["idempotency-replayed"] == "true"
    assert await failing.admin.fetchval("SELECT count(*) FROM orders") == before + 1


# --- Never sent --------------------------------------------------------------------------------


async def test_a_refused_connection_is_503_after_two_tries(failing: Failing) -> None:
    failing.relay.refuse()
    failing.relay.cut()
    answer = await failing.fleet.invoke(READ)
    failing.relay.refuse(False)
    assert outcome(answer) == (503, "1")
    assert failing.fleet.attempts == 2


@pytest.mark.parametrize("failing", [{"DB_CONNECT_TIMEOUT": "0.3"}], indirect=True)
async def test_a_connect_that_nobody_answers_is_503_after_one_try(failing: Failing) -> None:
    failing.relay.cut()
    failing.relay.stall()
    answer = await failing.fleet.invoke(READ)
    failing.relay.resume()
    assert outcome(answer) == (503, "1")
    assert failing.fleet.attempts == 1


async def test_a_name_that_does_not_resolve_is_503_after_two_tries(
    stack: Stack, tmp_path: Path
) -> None:
    environment = stack.environment() | {"DB_HOST": "nowhere.invalid"}
    async with Logged(environment, tmp_path) as fleet:
        assert outcome(await fleet.invoke(READ)) == (503, "1")
        assert fleet.attempts == 2
        assert outcome(await fleet.invoke(http_api("GET", "/health"))) == (200, None)


async def test_what_was_closed_while_the_loop_ran_is_replaced_unnoticed(failing: Failing) -> None:
    failing.relay.cut()
    assert await failing.fleet.is_well()
    assert failing.fleet.attempts == 1


async def test_a_postgres_restarted_while_clients_idle_is_not_noticed(
    own_stack: Stack, tmp_path: Path
) -> None:
    async with Logged(own_stack.environment(), tmp_path) as fleet:
        await fleet.invoke(READ)
        own_stack.postgres.stop()
        own_stack.postgres.start()
        assert await fleet.is_well()
        assert fleet.attempts == 1


# --- Ran too long ------------------------------------------------------------------------------


async def test_a_query_past_statement_timeout_is_504_after_one_try(failing: Failing) -> None:
    async def wait() -> None:
        await asyncio.sleep(6)  # the role's five seconds, and one

    answer = await failing.mid_query(READ, wait)
    assert outcome(answer) == (504, None)
    assert failing.fleet.attempts == 1
    assert failing.fleet.last["sqlstate"] == "57014"


@pytest.mark.parametrize("failing", [{"query_timeout": 1}], indirect=True)
async def test_a_query_past_pgbouncer_s_query_timeout_is_504_after_one_try(
    failing: Failing,
) -> None:
    async def wait() -> None:
        async with asyncio.timeout(10):
            while "query timeout" not in failing.bouncer.said():  # noqa: ASYNC110  # its own clock
                await asyncio.sleep(0.02)

    answer = await failing.mid_query(READ, wait)
    assert outcome(answer) == (504, None)
    assert failing.fleet.attempts == 1


@pytest.mark.parametrize("failing", [{"DB_COMMAND_TIMEOUT": "0.3"}], indirect=True)
async def test_a_server_that_goes_silent_is_503_after_one_try(failing: Failing) -> None:
    failing.relay.stall()
    answer = await failing.fleet.invoke(READ)
    failing.relay.resume()
    assert outcome(answer) == (503, "1")
    assert failing.fleet.attempts == 1


async def test_where_a_cancel_goes_astray_the_query_ends_by_statement_timeout(
    stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> None:
    """A load balancer sends the cancel request to the other PgBouncer, who knows nothing of it."""
    with (
        stack.another_pgbouncer(tls=False) as one,
        stack.another_pgbouncer(tls=False) as other,
        Relay(one.host, one.port, (other.host, other.port)) as balancer,
    ):
        environment = stack.environment(one) | {"DB_PORT": str(balancer.port)}
        ended = stack.postgres.said().count("due to statement timeout")
        async with Logged(environment, tmp_path, timeout=2) as fleet:
            await fleet.invoke(READ)
            async with locker.transaction():
                await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
                assert outcome(await fleet.invoke(READ)) == (504, None)
                assert await admin.fetchval(BLOCKED, APP) == 1  # nobody cancelled it
                async with asyncio.timeout(6):
                    while await admin.fetchval(BLOCKED, APP):  # noqa: ASYNC110  # it rings no bell
                        await asyncio.sleep(0.05)
            assert await fleet.is_well()
    assert stack.postgres.said().count("due to statement timeout") == ended + 1


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


async def test_a_certificate_of_another_ca_is_503_after_one_try(
    stack: Stack, tmp_path: Path
) -> None:
    with (
        stack.another_pgbouncer() as stranger,
        stack.another_pgbouncer() as bouncer,
        Relay(stranger.host, stranger.port) as relay,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(relay.port)}
        async with Logged(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (503, "1")
            assert fleet.attempts == 1
            assert "DB_SSLROOTCERT" in fleet.last["remedy"]
            relay.lead_to(bouncer.host, bouncer.port)
            assert await fleet.is_well()


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
