"""Lost, unsent and slow queries have the documented status, and the service recovers."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.database.roles import APP
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import eventually
from tests.events import http_api
from tests.integration.failing_fleet import (
    BLOCKED_SESSIONS,
    READ,
    FailingFleet,
    LoggedFleet,
    outcome,
    write,
)

# --- Lost during a query -------------------------------------------------------------------------


@pytest.mark.parametrize("event", [READ, write("backend")], ids=["read", "write"])
async def test_a_backend_killed_during_a_query_costs_one_retry(
    failing_fleet: FailingFleet, event: dict[str, Any]
) -> None:
    async def kill() -> None:
        await failing_fleet.admin.execute(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            " WHERE usename = $1 AND wait_event_type = 'Lock'",
            APP,
        )

    assert outcome(await failing_fleet.during_query(event, kill)) in ((200, None), (201, None))
    assert failing_fleet.fleet.attempts == 2


@pytest.mark.parametrize("event", [READ, write("cut")], ids=["read", "write"])
async def test_a_connection_lost_during_a_query_costs_one_retry(
    failing_fleet: FailingFleet, event: dict[str, Any]
) -> None:
    async def cut() -> None:
        failing_fleet.proxy.reset_connections()

    assert outcome(await failing_fleet.during_query(event, cut)) in ((200, None), (201, None))
    assert failing_fleet.fleet.attempts == 2


async def test_a_pgbouncer_killed_during_a_query_is_503_after_a_failed_retry(
    failing_fleet: FailingFleet,
) -> None:
    async def kill() -> None:
        assert failing_fleet.bouncer.process is not None
        failing_fleet.bouncer.process.kill()
        failing_fleet.bouncer.process.wait()

    assert outcome(await failing_fleet.during_query(READ, kill)) == (503, "1")
    assert failing_fleet.fleet.attempts == 2
    failing_fleet.bouncer.start()


async def test_a_write_with_a_lost_response_creates_one_order(failing_fleet: FailingFleet) -> None:
    """The write was executed, and the retry under the same key finds it."""
    await failing_fleet.fleet.invoke(write("found"))  # so the next write takes one round trip
    before = await failing_fleet.admin.fetchval("SELECT count(*) FROM orders")
    failing_fleet.proxy.drop("responses")
    invocation = asyncio.create_task(failing_fleet.fleet.invoke(write("lost")))
    async with asyncio.timeout(5):
        while await failing_fleet.admin.fetchval("SELECT count(*) FROM orders") == before:
            await asyncio.sleep(0.01)
    failing_fleet.proxy.reset_connections()
    assert outcome(await invocation) == (201, None)
    assert failing_fleet.fleet.attempts == 2
    assert (await invocation).payload["headers"]["idempotency-replayed"] == "true"
    assert await failing_fleet.admin.fetchval("SELECT count(*) FROM orders") == before + 1


# --- Never sent ----------------------------------------------------------------------------------


async def test_a_refused_connection_is_503_after_two_attempts(failing_fleet: FailingFleet) -> None:
    failing_fleet.proxy.refuse()
    failing_fleet.proxy.reset_connections()
    result = await failing_fleet.fleet.invoke(READ)
    failing_fleet.proxy.refuse(False)
    assert outcome(result) == (503, "1")
    assert failing_fleet.fleet.attempts == 2


@pytest.mark.parametrize("failing_fleet", [{"DB_CONNECT_TIMEOUT": "1.5"}], indirect=True)
async def test_an_unanswered_connection_attempt_is_503_without_a_retry(
    failing_fleet: FailingFleet,
) -> None:
    failing_fleet.proxy.reset_connections()
    failing_fleet.proxy.stall()
    result = await failing_fleet.fleet.invoke(READ)
    failing_fleet.proxy.resume()
    assert outcome(result) == (503, "1")
    assert failing_fleet.fleet.attempts == 1


async def test_an_unresolvable_name_is_503_after_two_attempts(stack: Stack, tmp_path: Path) -> None:
    async with LoggedFleet(stack.environment() | {"DB_HOST": "nowhere.invalid"}, tmp_path) as fleet:
        assert outcome(await fleet.invoke(READ)) == (503, "1")
        assert fleet.attempts == 2
        assert outcome(await fleet.invoke(http_api("GET", "/health"))) == (200, None)


async def test_a_connection_closed_while_the_loop_ran_is_replaced(
    failing_fleet: FailingFleet,
) -> None:
    failing_fleet.proxy.reset_connections()
    assert await failing_fleet.fleet.recovers()
    assert failing_fleet.fleet.attempts == 1


async def test_a_postgres_restart_between_requests_fails_no_request(
    own_stack: Stack, tmp_path: Path
) -> None:
    async with LoggedFleet(own_stack.environment(), tmp_path) as fleet:
        await fleet.invoke(READ)
        own_stack.postgres.stop()
        own_stack.postgres.start()
        assert await fleet.recovers()
        assert fleet.attempts == 1


# --- Too slow ------------------------------------------------------------------------------------


async def test_a_query_past_statement_timeout_is_504_without_a_retry(
    failing_fleet: FailingFleet,
) -> None:
    async def wait() -> None:
        await asyncio.sleep(6)  # the role's statement_timeout of five seconds, and one more

    assert outcome(await failing_fleet.during_query(READ, wait)) == (504, None)
    assert failing_fleet.fleet.attempts == 1
    assert failing_fleet.fleet.last["sqlstate"] == "57014"


@pytest.mark.parametrize("failing_fleet", [{"query_timeout": 1}], indirect=True)
async def test_a_query_past_query_timeout_is_504_without_a_retry(
    failing_fleet: FailingFleet,
) -> None:
    async def wait() -> None:
        bouncer = failing_fleet.bouncer
        await asyncio.to_thread(eventually, lambda: "query timeout" in bouncer.log_since_start())

    assert outcome(await failing_fleet.during_query(READ, wait)) == (504, None)
    assert failing_fleet.fleet.attempts == 1


@pytest.mark.parametrize("failing_fleet", [{"DB_COMMAND_TIMEOUT": "0.3"}], indirect=True)
async def test_a_server_that_stops_responding_is_503_without_a_retry(
    failing_fleet: FailingFleet,
) -> None:
    failing_fleet.proxy.stall()
    result = await failing_fleet.fleet.invoke(READ)
    failing_fleet.proxy.resume()
    assert outcome(result) == (503, "1")
    assert failing_fleet.fleet.attempts == 1


async def test_a_query_with_a_lost_cancel_request_ends_at_statement_timeout(
    stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> None:
    """A load balancer sends the cancel request to a PgBouncer that does not know the query."""
    with (
        stack.another_pgbouncer(tls=False) as first,
        stack.another_pgbouncer(tls=False) as second,
        TcpProxy(first.host, first.port, (second.host, second.port)) as balancer,
    ):
        environment = stack.environment(first) | {"DB_PORT": str(balancer.port)}
        timeouts_before = stack.postgres.log_since_start().count("due to statement timeout")
        async with LoggedFleet(environment, tmp_path, timeout=2) as fleet:
            await fleet.invoke(READ)
            async with locker.transaction():
                await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
                assert outcome(await fleet.invoke(READ)) == (504, None)
                assert await admin.fetchval(BLOCKED_SESSIONS, APP) == 1  # it was not cancelled
                async with asyncio.timeout(6):
                    while await admin.fetchval(BLOCKED_SESSIONS, APP):
                        await asyncio.sleep(0.05)
            assert await fleet.recovers()
    assert stack.postgres.log_since_start().count("due to statement timeout") == timeouts_before + 1
