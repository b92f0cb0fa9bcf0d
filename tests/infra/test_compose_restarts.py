"""A fleet under load: its share of Postgres, and the effect of a server restart."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox

pytestmark = ON_COMPOSE


@contextlib.asynccontextmanager
async def fleet(compose: ComposeStack, count: int) -> AsyncIterator[list[Sandbox]]:
    """Start this many containers of `fleet`, each with one request served."""
    up = ("--profile", "fleet", "up", "--wait", "--no-deps", "--scale", f"fleet={count}", "fleet")
    try:
        await asyncio.to_thread(compose, *up)
        sandboxes = [Sandbox(each) for each in compose("ps", "--quiet", "fleet").split()]
        assert len(sandboxes) == count
        async with asyncio.TaskGroup() as group:
            for sandbox in sandboxes:
                group.create_task(asyncio.to_thread(sandbox.invoke))
        yield sandboxes
    finally:
        await asyncio.to_thread(compose, "rm", "--stop", "--force", "fleet")


@pytest.fixture
def pool_of_four(compose: ComposeStack) -> Iterator[int]:
    """Use a small pool for the duration of a test: how much of 13 connections ten sandboxes need
    depends on the machine."""
    for command in ("SET default_pool_size = 4", "SET reserve_pool_size = 0", "RECONNECT"):
        compose.console(command)
    yield 4
    compose.console("RELOAD")  # as in the ini file


async def test_ten_sandboxes_share_one_pool(compose: ComposeStack, pool_of_four: int) -> None:
    async with fleet(compose, 10) as sandboxes:
        load = asyncio.gather(*(asyncio.to_thread(each.load, 5) for each in sandboxes))
        peak = 0
        while not load.done():
            peak = max(peak, await asyncio.to_thread(compose.backends_of, "appuser"))
        answers = [status for answered in await load for _, status in answered]
        assert set(answers) == {200}
        assert len(answers) > 100
        assert 1 < peak <= pool_of_four
        assert len([row for row in compose.show("CLIENTS") if row["user"] == "appuser"]) >= 10


@pytest.mark.parametrize("service", ["pgbouncer", "postgres"])
async def test_requests_succeed_as_soon_as_a_restarted_server_is_back(
    compose: ComposeStack, service: str
) -> None:
    """Some callers get a retryable 503, but no other error, and none waits much longer than the
    restart takes."""

    def served() -> int:
        return sum(int(row["total_query_count"]) for row in compose.show("STATS"))

    async with fleet(compose, 3) as sandboxes:
        before = served()
        load = asyncio.gather(*(asyncio.to_thread(each.load, 15) for each in sandboxes))
        await asyncio.to_thread(eventually, lambda: served() > before + 300)
        stopped = time.time()
        await asyncio.to_thread(compose, "restart", service)
        back = time.time()
        assert back - stopped < 10  # it did not wait for clients to disconnect
        for answered in await load:
            assert {status for _, status in answered} <= {200, 503}
            assert any(status == 200 for when, status in answered if when < stopped)
            failed = [when for when, status in answered if status != 200]
            last = max(failed, default=stopped)
            assert last < back + 5, f"failed until {last - back:.1f} s after the restart"
            assert sum(status == 200 for when, status in answered if when > back + 5) > 10
