"""However a sandbox's container ends, its connections are closed in bounded time."""

import asyncio
import re

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE


def close_log_lines(compose: ComposeStack, address: str) -> list[str]:
    """Return PgBouncer's log messages of how connections from `address` were closed."""
    pattern = rf"appuser@{re.escape(address)}:\d+ closing because: ([a-z ]+)"
    return re.findall(pattern, compose.log("pgbouncer"))


async def test_a_stopped_container_closes_its_connections(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    address = sandbox.address()
    assert len(compose.clients_from(address)) == 1
    docker("stop", sandbox.container)
    assert close_log_lines(compose, address)[-1].startswith("client close request")
    assert not compose.clients_from(address)


async def test_a_killed_container_frees_its_client_connection_at_once(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    address = sandbox.address()
    docker("kill", sandbox.container)
    eventually(lambda: not compose.clients_from(address), 3)
    assert close_log_lines(compose, address)[-1].startswith("client unexpected eof")


async def test_a_query_of_a_killed_container_ends_at_statement_timeout(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    active = "SELECT pid FROM pg_stat_activity WHERE usename = 'appuser' AND state = 'active'"
    lock = "BEGIN; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE; SELECT pg_sleep(12)"
    locker = asyncio.create_task(asyncio.to_thread(compose.sql, lock))
    held = "SELECT 1 FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    await asyncio.to_thread(eventually, lambda: compose.sql(f"{held} AND locktype = 'relation'"))
    invocation = asyncio.create_task(asyncio.to_thread(sandbox.invoke))
    await asyncio.to_thread(eventually, lambda: compose.sql(active))
    docker("kill", sandbox.container)
    # Postgres notices a lost client only after the query: statement_timeout is 5 s.
    await asyncio.to_thread(eventually, lambda: not compose.sql(active), 8)
    assert not locker.done()
    await asyncio.wait([invocation])
    assert invocation.exception() is not None
    await locker


async def test_a_paused_container_holds_a_client_but_no_backend(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    with compose.sandbox("direct") as direct:
        assert direct.invoke()["statusCode"] == 200
        address = sandbox.address()
        paused = (sandbox.container, direct.container)
        direct_backend = (
            "SELECT state FROM pg_stat_activity WHERE usename = 'appuser'"
            f" AND client_addr = '{direct.address()}'"
        )
        docker("pause", *paused)
        try:
            [client] = compose.clients_from(address)
            assert client["link"] == ""  # it holds no server connection
            assert [row["state"] for row in compose.sql(direct_backend)] == ["idle"]
        finally:
            docker("unpause", *paused)
        assert sandbox.invoke()["statusCode"] == 200
        assert direct.invoke()["statusCode"] == 200


async def test_a_disconnected_container_is_closed_at_the_idle_timeout(
    compose: ComposeStack, sandbox: Sandbox
) -> None:
    """A direct connection would hold its backend for two hours, the system's default."""
    network, direct_network = f"{compose.project}_default", f"{compose.project}_storage"
    [setting] = [row for row in compose.show("CONFIG") if row["key"] == "client_idle_timeout"]
    assert setting["value"] == "300"
    with compose.sandbox("direct") as direct:
        assert direct.invoke()["statusCode"] == 200
        address, direct_address = sandbox.address(), direct.address()
        backend = f"SELECT state FROM pg_stat_activity WHERE client_addr = '{direct_address}'"
        docker("network", "disconnect", network, sandbox.container)
        docker("network", "disconnect", direct_network, direct.container)
        try:
            [client] = compose.clients_from(address)
            assert client["link"] == ""  # it holds no server connection
            compose.console("SET client_idle_timeout = 3")  # to keep the test short
            await asyncio.to_thread(eventually, lambda: not compose.clients_from(address), 30)
            assert compose.sql(backend) == [{"state": "idle"}]
        finally:
            compose.console("RELOAD")  # as in the ini file
            compose.sql(backend.replace("state", "pg_terminate_backend(pid)", 1))
        docker("network", "connect", network, sandbox.container)
        assert sandbox.invoke()["statusCode"] == 200
