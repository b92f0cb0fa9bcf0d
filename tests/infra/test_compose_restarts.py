"""A fleet under load shares one pool and recovers from server restarts."""

import asyncio
import contextlib
import operator
import time
from collections.abc import AsyncIterator, Iterator

import pytest

from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, Sandbox

pytestmark = ON_COMPOSE


@contextlib.asynccontextmanager
async def fleet(compose: ComposeStack, count: int) -> AsyncIterator[list[Sandbox]]:
    """Start `count` containers of `fleet`, and send one request to each."""
    up = ("--profile", "fleet", "up", "--wait", "--no-deps", "--scale", f"fleet={count}", "fleet")
    try:
        await asyncio.to_thread(compose, *up)
        sandboxes = [Sandbox(container) for container in compose("ps", "--quiet", "fleet").split()]
        assert len(sandboxes) == count
        async with asyncio.TaskGroup() as group:
            for sandbox in sandboxes:
                group.create_task(asyncio.to_thread(sandbox.invoke))
        yield sandboxes
    finally:
        await asyncio.to_thread(compose, "rm", "--stop", "--force", "fleet")


@pytest.fixture
def pool_of_four(compose: ComposeStack) -> Iterator[int]:
    """Use a small pool during a test, because the load on a larger one depends on the machine."""
    for command in ("SET default_pool_size = 4", "SET reserve_pool_size = 0", "RECONNECT"):
        compose.console(command)
    yield 4
    compose.console("RELOAD")  # as in the ini file


async def test_ten_sandboxes_share_one_pool(compose: ComposeStack, pool_of_four: int) -> None:
    async with fleet(compose, 10) as sandboxes:
        load = asyncio.gather(*(asyncio.to_thread(sandbox.load, 5) for sandbox in sandboxes))
        peak = 0
        while not load.done():
            peak = max(peak, await asyncio.to_thread(compose.backends_of, "appuser"))
        statuses = [status for responses in await load for _, status in responses]
        assert set(statuses) == {200}
        assert len(statuses) > 100
        assert 1 < peak <= pool_of_four
        assert len([row for row in compose.show("CLIENTS") if row["user"] == "appuser"]) >= 10


@pytest.mark.parametrize("service", ["pgbouncer", "postgres"])
async def test_requests_succeed_as_soon_as_a_restarted_server_is_back(
    compose: ComposeStack, service: str
) -> None:
    """Callers may get a retryable 503, but no other error, and only during the restart."""

    def count_queries() -> int:
        return sum(int(row["total_query_count"]) for row in compose.show("STATS"))

    async with fleet(compose, 3) as sandboxes:
        before = count_queries()
        during = asyncio.gather(*(asyncio.to_thread(sandbox.load, 10) for sandbox in sandboxes))
        await asyncio.to_thread(eventually, lambda: count_queries() > before + 300)
        stopped_at = time.time()
        await asyncio.to_thread(compose, "restart", service)
        restarted_at = time.time()
        # It did not wait for clients to disconnect until Docker killed it.
        assert compose.exit_statuses(service, stopped_at, restarted_at) == [0]
        first = await during
        # However long the restart took, the load goes on beyond the five seconds after it.
        after = asyncio.gather(*(asyncio.to_thread(sandbox.load, 7) for sandbox in sandboxes))
        for responses in map(operator.add, first, await after):
            assert {status for _, status in responses} <= {200, 503}
            assert any(status == 200 for moment, status in responses if moment < stopped_at)
            failures = [moment for moment, status in responses if status != 200]
            last_failure = max(failures, default=stopped_at) - restarted_at
            assert last_failure < 5, f"failed until {last_failure:.1f} s after the restart"
            late = [status for moment, status in responses if moment > restarted_at + 5]
            assert late.count(200) > 10
