"""Each way the database fails: provoked for real, answered as the table says, and well after it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.database.roles import APP
from infra.local.fleet import Answer, Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.events import http_api

READ = http_api("GET", "/orders/1")
BLOCKED = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND wait_event_type = 'Lock'"


def write(key: str) -> dict[str, Any]:
    body = json.dumps({"customer_name": "Ivory Drums"})
    return http_api("POST", "/orders", body=body, idempotency_key=key)


@pytest.fixture
async def locker(stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A second administrator, to hold locks that queries wait for."""
    connection = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    yield connection
    await connection.close()


@dataclass
class Failing:
    """A fleet whose queries wait for a lock while something is done to what they run on."""

    fleet: Fleet
    bouncer: PgBouncer
    relay: Relay
    admin: Any
    locker: Any
    log: Path

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

    @property
    def tries(self) -> int:
        return 1 + self.log.read_text().count("trying again")


@pytest.fixture
async def failing(stack: Stack, admin: Any, locker: Any, tmp_path: Path) -> AsyncIterator[Failing]:
    with stack.another_pgbouncer() as bouncer, Relay(bouncer.host, bouncer.port) as relay:
        environment = stack.environment(bouncer) | {"DB_PORT": str(relay.port)}
        async with Fleet(environment, logs=tmp_path) as fleet:
            assert (await fleet.invoke(READ)).payload["statusCode"] == 200
            yield Failing(fleet, bouncer, relay, admin, locker, tmp_path / "sandbox-1.log")
            good = await fleet.invoke(READ)
            assert (good.payload["statusCode"], good.cold) == (200, False)


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
    assert answer.payload["statusCode"] in (200, 201)
    assert failing.tries == 2


@pytest.mark.parametrize("event", [READ, write("cut")], ids=["read", "write"])
async def test_a_connection_cut_in_mid_query_costs_one_more_try(
    failing: Failing, event: dict[str, Any]
) -> None:
    async def cut() -> None:
        failing.relay.cut()

    answer = await failing.mid_query(event, cut)
    assert answer.payload["statusCode"] in (200, 201)
    assert failing.tries == 2


async def test_a_write_whose_answer_was_lost_is_one_order(failing: Failing) -> None:
    """It ran, but nobody said so: sent again under its key, it finds itself."""
    [before] = await failing.admin.fetchrow("SELECT count(*) FROM orders")
    answer = await failing.fleet.invoke(write("lost"))
    again = await failing.fleet.invoke(write("lost"))
    assert again.payload["body"] == answer.payload["body"]
    assert again.payload["headers"]["idempotency-replayed"] == "true"
    assert await failing.admin.fetchval("SELECT count(*) FROM orders") == before + 1


async def test_a_refused_connection_is_tried_twice_and_is_503(failing: Failing) -> None:
    failing.relay.refuse()
    failing.relay.cut()
    answer = await failing.fleet.invoke(READ)
    failing.relay.refuse(False)
    assert (answer.payload["statusCode"], answer.payload["headers"]["retry-after"]) == (503, "1")
    assert failing.tries == 2


async def test_a_query_past_statement_timeout_is_504_after_one_try(
    stack: Stack, failing: Failing
) -> None:
    async def nothing() -> None:
        await asyncio.sleep(6)  # the role's five seconds, and one

    answer = await failing.mid_query(READ, nothing)
    assert answer.payload["statusCode"] == 504
    assert "retry-after" not in answer.payload["headers"]
    assert failing.tries == 1


@pytest.mark.parametrize(
    ("settings", "logged"),
    [
        (
            {"default_pool_size": 1, "reserve_pool_size": 0, "query_wait_timeout": 1},
            "no server conn",
        ),
        ({"max_client_conn": 1}, "PgBouncer is full"),
    ],
    ids=["query_wait_timeout", "max_client_conn"],
)
async def test_against_overload_nothing_is_tried_again(
    stack: Stack, tmp_path: Path, settings: dict[str, str | int], logged: str
) -> None:
    with stack.another_pgbouncer(settings=settings) as bouncer:
        busy = await asyncpg.connect(
            host=bouncer.host,
            port=bouncer.port,
            user=APP,
            password=stack.settings().password.get_secret_value(),
            database=DATABASE,
            ssl=bouncer.trust(),
            statement_cache_size=0,
        )
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            async with busy.transaction():
                await busy.execute("SELECT 1")
                answer = await fleet.invoke(READ)
            await busy.close()
            log = (tmp_path / "sandbox-1.log").read_text()
            assert answer.payload["statusCode"] == 503
            assert int(answer.payload["headers"]["retry-after"]) > 1
            assert re.search(logged, log)
            assert "trying again" not in log
            assert (await fleet.invoke(READ)).payload["statusCode"] == 200


async def test_a_postgres_out_of_slots_is_503_after_one_try(
    own_stack: Stack, tmp_path: Path
) -> None:
    direct = {"DB_PORT": str(own_stack.postgres.port), "DB_SSLMODE": "disable"}
    password = own_stack.settings().password.get_secret_value()
    login = {**own_stack.postgres.admin, "user": APP, "password": password, "database": DATABASE}
    holders = [await asyncpg.connect(**login) for _ in range(17)]
    async with Fleet(own_stack.environment() | direct, logs=tmp_path) as fleet:
        answer = await fleet.invoke(READ)
        assert (answer.payload["statusCode"], answer.payload["headers"]["retry-after"]) == (
            503,
            "2",
        )
        log = (tmp_path / "sandbox-1.log").read_text()
        assert "Postgres is full" in log
        assert "trying again" not in log
        for holder in holders:
            await holder.close()
        assert (await fleet.invoke(READ)).payload["statusCode"] == 200
