"""A query that is lost, never sent or too long: answered as the table says, and well after it."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from infra.database.roles import APP
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.events import http_api
from tests.integration.failing import BLOCKED, READ, Failing, Logged, outcome, write

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
    failing.relay.swallow("answers")
    answer = asyncio.create_task(failing.fleet.invoke(write("lost")))
    async with asyncio.timeout(5):
        while await failing.admin.fetchval("SELECT count(*) FROM orders") == before:  # noqa: ASYNC110  # it rings no bell
            await asyncio.sleep(0.01)
    failing.relay.cut()
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
