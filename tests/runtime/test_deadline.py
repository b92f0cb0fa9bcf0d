"""The caller gets a response before Lambda's timeout, and the sandbox survives."""

import json
import time

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import PgConnection, wait_for_queries
from tests.events import http_api

READ = http_api("GET", "/orders/1")


async def test_a_query_past_the_deadline_is_cancelled_and_returns_504(
    stack: Stack, admin: PgConnection, locker: PgConnection
) -> None:
    async with Fleet(stack.environment(), timeout=2) as fleet:
        warm = await fleet.invoke(READ)
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            started = time.monotonic()
            timed_out = await fleet.invoke(READ)
            assert time.monotonic() - started < 2
            assert timed_out.payload["statusCode"] == 504
            assert json.loads(timed_out.payload["body"])["request_id"] == timed_out.request_id
            await wait_for_queries(admin, 0, seconds=1)
        next_result = await fleet.invoke(READ)
        assert next_result.payload["statusCode"] == 200
        assert (next_result.cold, next_result.pid) == (False, warm.pid)
