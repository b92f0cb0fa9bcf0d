"""Session state that a client leaves on a server connection does not affect other clients."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from handler.warm.database.connection import connector
from infra.database.roles import APP
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import administrator, eventually
from tests.integration.failing_fleet import READ, LoggedFleet, outcome, write

#: All kinds of state that outlive a transaction.
SESSION_STATE = {
    "search_path": "SELECT set_config('search_path', '', false)",
    "read only": "SET default_transaction_read_only = on",
    "no time limit": "SET statement_timeout = 0",
    "prepared statement": "PREPARE left_behind AS SELECT 1",
    "notifications": "LISTEN left_behind",
    "advisory lock": "SELECT pg_advisory_lock(23)",
}
#: Counts how many of these a session has.
COUNT_SESSION_STATE = """SELECT
  (current_setting('search_path') = '')::int
  + (current_setting('default_transaction_read_only') = 'on')::int
  + (current_setting('statement_timeout') <> '5s')::int
  + (SELECT count(*) FROM pg_prepared_statements WHERE name = 'left_behind')
  + (SELECT count(*) FROM pg_listening_channels())
  + (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory')"""
#: A single server connection, shared by all clients.
ONE_CONNECTION: dict[str, str | int] = {"default_pool_size": 1, "reserve_pool_size": 0}


async def leave_behind(stack: Stack, bouncer: PgBouncer, statement: str) -> None:
    client = await connector(stack.settings(through=bouncer))()
    await client.execute(statement)
    await client.close()


@pytest.mark.parametrize("statement", SESSION_STATE.values(), ids=SESSION_STATE.keys())
async def test_session_state_does_not_leak_to_other_clients(stack: Stack, statement: str) -> None:
    with stack.another_pgbouncer(settings=ONE_CONNECTION) as bouncer:
        before = await connector(stack.settings(through=bouncer))()
        await leave_behind(stack, bouncer, statement)
        after = await connector(stack.settings(through=bouncer))()
        for client in (before, after):
            assert await client.fetchval(COUNT_SESSION_STATE) == 0
            assert await client.fetchval("SELECT count(*) FROM public.orders") >= 1000
            await client.close()


async def test_sandboxes_work_after_a_client_left_session_state(
    own_stack: Stack, tmp_path: Path
) -> None:
    with own_stack.another_pgbouncer(settings=ONE_CONNECTION) as bouncer:
        async with LoggedFleet(own_stack.environment(bouncer), tmp_path, concurrency=2) as fleet:
            assert outcome(await fleet.invoke(READ)) == (200, None)
            # Each statement needs its own client, because PgBouncer 1.26 disconnects a client with
            # an empty search_path at its next query.
            for statement in SESSION_STATE.values():
                await leave_behind(own_stack, bouncer, statement)
            for cold in (False, True):
                assert outcome(await fleet.invoke(READ, cold=cold)) == (200, None)
                assert outcome(await fleet.invoke(write(f"careless-{cold}")))[0] == 201


async def test_the_reset_adds_no_query_before_the_next_one(own_stack: Stack) -> None:
    """Such a query would delay each client by a round trip between PgBouncer and Postgres."""
    async with administrator(own_stack) as admin:
        await admin.execute("ALTER SYSTEM SET log_statement = 'all'")
        await admin.execute("SELECT pg_reload_conf()")
    async with asyncio.timeout(10):  # until the postmaster has read the new configuration
        while True:
            async with administrator(own_stack) as new_connection:
                if await new_connection.fetchval("SHOW log_statement") == "all":
                    break
    with own_stack.another_pgbouncer(settings=ONE_CONNECTION) as bouncer:
        client = await connector(own_stack.settings(through=bouncer))()
        for number in range(5):
            assert await client.fetchval(f"SELECT {number}") == number
        await client.close()

        def statements() -> list[str]:
            log = own_stack.postgres.log.read_text().splitlines()
            return [line for line in log if f" {APP} " in line]

        def resets() -> list[str]:
            return [line for line in statements() if "DISCARD ALL" in line]

        eventually(lambda: len(resets()) >= 5)
        assert not [line for line in statements() if "statement: SET" in line]


@pytest.mark.parametrize(
    ("statement", "event", "sqlstate"),
    [
        (SESSION_STATE["search_path"], READ, "42P01"),
        (SESSION_STATE["read only"], write("left read-only"), "25006"),
    ],
    ids=["search_path", "read only"],
)
async def test_the_hint_to_reconnect_works_without_a_reset_query(
    own_stack: Stack, tmp_path: Path, statement: str, event: Any, sqlstate: str
) -> None:
    without_reset = {**ONE_CONNECTION, "server_reset_query_always": 0}
    with own_stack.another_pgbouncer(settings=without_reset) as bouncer:
        async with LoggedFleet(own_stack.environment(bouncer), tmp_path) as fleet:
            assert await fleet.invoke(READ)
            await leave_behind(own_stack, bouncer, statement)
            # Since 1.26 PgBouncer tracks the parameters that Postgres reports, which include
            # search_path since Postgres 18.
            reported = sqlstate == "25006" or own_stack.postgres.version >= "18"
            if bouncer.program.version >= (1, 26) and reported:
                assert outcome(await fleet.invoke(event))[0] in (200, 201)
                return
            assert outcome(await fleet.invoke(event)) == (503, "1")
            assert fleet.last["sqlstate"] == sqlstate
            assert "RECONNECT" in fleet.last["hint"]
            with await asyncio.to_thread(bouncer.console) as console:
                await asyncio.to_thread(console.execute, "RECONNECT")
            assert outcome(await fleet.invoke(event))[0] in (200, 201)


async def test_the_reset_does_not_delay_the_client(stack: Stack) -> None:
    """The reset ends before the next query even over a slow network to Postgres."""
    loop = asyncio.get_running_loop()
    with (
        TcpProxy(stack.postgres.host, stack.postgres.port, delay=0.3) as proxy,
        stack.another_pgbouncer(settings=ONE_CONNECTION, postgres_port=proxy.port) as bouncer,
    ):
        client = await connector(stack.settings(through=bouncer))()
        await client.fetchval("SELECT 1")
        await asyncio.sleep(1.2)  # as between two requests of a sandbox
        started = loop.time()
        await client.fetchval("SELECT 1")
        assert loop.time() - started < 1.1  # one round trip of 0.6 s, not two
        await client.close()
