"""How a sandbox's container may end, and what each end leaves on PgBouncer and on Postgres."""

import asyncio
import re

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE


def goodbye(compose: ComposeStack, address: str) -> list[str]:
    """How the application's connections from `address` were closed, in PgBouncer's words."""
    pattern = rf"appuser@{re.escape(address)}:\d+ closing because: ([a-z ]+)"
    return re.findall(pattern, compose.log("pgbouncer"))


async def test_stopped_it_says_goodbye(compose: ComposeStack, sandbox: Sandbox) -> None:
    address = sandbox.address()
    assert len(compose.clients_from(address)) == 1
    docker("stop", sandbox.container)
    assert goodbye(compose, address)[-1].startswith("client close request")
    assert not compose.clients_from(address)


async def test_killed_it_leaves_its_place_at_once(compose: ComposeStack, sandbox: Sandbox) -> None:
    address = sandbox.address()
    docker("kill", sandbox.container)
    eventually(lambda: not compose.clients_from(address), 3)
    assert goodbye(compose, address)[-1].startswith("client unexpected eof")


async def test_killed_in_mid_query_its_query_ends_by_the_role_s_limit(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    running = "SELECT pid FROM pg_stat_activity WHERE usename = 'appuser' AND state = 'active'"
    lock = "BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(12)"
    locking = asyncio.create_task(asyncio.to_thread(compose.sql, lock))
    held = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    await asyncio.to_thread(eventually, lambda: compose.sql(f"{held} AND locktype = 'relation'"))
    asking = asyncio.create_task(asyncio.to_thread(sandbox.ask))
    await asyncio.to_thread(eventually, lambda: compose.sql(running))
    docker("kill", sandbox.container)
    # Postgres looks after its client only when the query is done: statement_timeout is 5.
    await asyncio.to_thread(eventually, lambda: not compose.sql(running), 8)
    assert not locking.done()
    await asyncio.wait([asking])
    assert asking.exception() is not None
    await locking


async def test_paused_it_keeps_a_place_on_pgbouncer_and_none_on_postgres(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    with compose.sandbox("direct") as direct:
        assert direct.ask()["statusCode"] == 200
        address = sandbox.address()
        paused = (sandbox.container, direct.container)
        direct_backend = (
            "SELECT state FROM pg_stat_activity WHERE usename = 'appuser'"
            f" AND client_addr = '{direct.address()}'"
        )
        docker("pause", *paused)
        try:
            [client] = compose.clients_from(address)
            assert client["link"] == ""  # no server connection is its
            assert [row["state"] for row in compose.sql(direct_backend)] == ["idle"]
        finally:
            docker("unpause", *paused)
        assert sandbox.ask()["statusCode"] == 200
        assert direct.ask()["statusCode"] == 200


async def test_cut_off_it_keeps_its_place_no_longer_than_an_idle_client(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    """Past PgBouncer it holds a connection of Postgres for two hours, the system's default."""
    network = f"{compose.project}_default"
    [limit] = [row for row in compose.show("CONFIG") if row["key"] == "client_idle_timeout"]
    assert limit["value"] == "300"
    with compose.sandbox("direct") as direct:
        assert direct.ask()["statusCode"] == 200
        address, past = sandbox.address(), direct.address()
        backend = f"SELECT state FROM pg_stat_activity WHERE client_addr = '{past}'"
        for container in (sandbox.container, direct.container):
            docker("network", "disconnect", network, container)
        try:
            [client] = compose.clients_from(address)
            assert client["link"] == ""  # no server connection is its
            compose.console("SET client_idle_timeout = 3")  # for a test's patience
            await asyncio.to_thread(eventually, lambda: not compose.clients_from(address), 30)
            assert compose.sql(backend) == [{"state": "idle"}]
        finally:
            compose.console("RELOAD")  # as the ini has it
            compose.sql(backend.replace("state", "pg_terminate_backend(pid)", 1))
        docker("network", "connect", network, sandbox.container)
        assert sandbox.ask()["statusCode"] == 200
