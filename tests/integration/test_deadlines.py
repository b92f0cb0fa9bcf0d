"""After a 504 no query keeps running, and nothing is written later."""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio

from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import PgConnection, administrator, log_lines
from tests.events import http_api
from tests.integration.backends import BUSY_BACKENDS, locked_row, stays_idle

#: One event loop for all tests here, so that they can share sandboxes.
LOOP: Any = {"loop_scope": "module"}
pytestmark = pytest.mark.asyncio(**LOOP)
HANDLER = "tests.integration.late_routes.handler"
#: Random deadlines to try; `.ci/run` tries more.
RACES = int(os.environ.get("DEADLINE_RACES", "60"))
ROUTES = [
    *("async-read", "async-write", "async-fast-write", "sync-read", "sync-write"),
    *("thread-without-context", "late-commit", "late-commit-of-its-own"),
    *("late-commit-on-the-engine", "late-statement"),
    *("session-write", "idle-session", "sync-idle-session", "stream"),
]


@pytest_asyncio.fixture(**LOOP)
async def admin(module_stack: Stack) -> AsyncIterator[PgConnection]:
    async with administrator(module_stack) as admin:
        await admin.execute(f"GRANT UPDATE ON orders TO {APP}")
        await admin.execute("UPDATE orders SET status = 'before' WHERE id < 3")
        yield admin


@pytest_asyncio.fixture(scope="module", **LOOP)
async def shared_fleet(request: pytest.FixtureRequest, module_stack: Stack) -> AsyncIterator[Fleet]:
    """Start a fleet whose parameter is its path to Postgres and whether it has a middleware."""
    path, middleware = request.param
    variables = environment(module_stack, path, MIDDLEWARE=middleware)
    async with Fleet(variables, handler=HANDLER, timeout=1) as fleet:
        for _ in range(10):  # on a busy machine a cold request may take longer than the timeout
            result = await fleet.invoke(get("now"))
            if result.payload.get("statusCode") == 200:
                break
        assert result.payload.get("statusCode") == 200, result.payload
        yield fleet


def get(path: str) -> dict[str, Any]:
    return http_api("GET", f"/{path}")


def environment(stack: Stack, path: str, **variables: str) -> dict[str, str]:
    return stack.environment(direct=path == "direct") | variables


@pytest.mark.parametrize(
    ("shared_fleet", "has_middleware"),
    [
        pytest.param((path, value), bool(value), id=f"{name}-{path}")
        for path in ("direct", "pgbouncer")
        for value, name in (("", "plain"), ("1", "under_middleware"))
    ],
    indirect=["shared_fleet"],
    scope="module",  # so that pytest groups the tests by fleet
)
@pytest.mark.parametrize("route", ROUTES)
async def test_no_query_runs_and_nothing_is_written_after_a_504(
    module_stack: Stack,
    admin: PgConnection,
    shared_fleet: Fleet,
    route: str,
    has_middleware: bool,
) -> None:
    warm = await shared_fleet.invoke(get("now"))
    async with locked_row(module_stack):
        result = await shared_fleet.invoke(get(route))
        assert result.payload["statusCode"] == 504, result.payload
        assert ("x-added" in result.payload["headers"]) == has_middleware
        assert await stays_idle(admin)
    rows = await admin.fetch("SELECT status FROM orders WHERE id < 3")
    assert {row["status"] for row in rows} == {"before"}
    await admin.execute("UPDATE orders SET status = 'newer' WHERE id < 3")
    for _ in range(3):  # each request thaws the sandbox
        await asyncio.sleep(0.1)
        after = await shared_fleet.invoke(get("now"))
        assert (after.payload["body"], after.pid) == ('"newer"', warm.pid)
    statuses = {row["status"] for row in await admin.fetch("TABLE orders") if row["id"] < 3}
    assert statuses == {"newer"}


@pytest.mark.parametrize("route", ["sync-write", "async-write"])
@pytest.mark.parametrize("middleware", ["", "1"], ids=["plain", "under_middleware"])
async def test_one_sandbox_never_has_two_active_backends(
    module_stack: Stack, admin: PgConnection, middleware: str, route: str
) -> None:
    with module_stack.another_pgbouncer(settings={"default_pool_size": 3}) as bouncer:
        variables = module_stack.environment(through=bouncer) | {"MIDDLEWARE": middleware}
        async with Fleet(variables, handler=HANDLER, timeout=1) as fleet:
            await fleet.invoke(get("now"))

            async def invoke_repeatedly() -> None:
                end = time.monotonic() + 6
                while time.monotonic() < end:
                    assert (await fleet.invoke(get(route))).payload["statusCode"] == 504

            async with locked_row(module_stack):
                invocations = asyncio.create_task(invoke_repeatedly())
                while not invocations.done():
                    # On a busy machine, Postgres may end a cancelled query a little later.
                    async with asyncio.timeout(0.5):
                        while await admin.fetchval(BUSY_BACKENDS, APP) > 1:
                            await asyncio.sleep(0.02)
                    await asyncio.sleep(0.02)
                await invocations
            assert (await fleet.invoke(get("now"))).payload["statusCode"] == 200


@pytest.mark.parametrize("path", ["direct", "pgbouncer"])
async def test_random_deadlines_end_in_200_or_504_only(
    module_stack: Stack, admin: PgConnection, path: str
) -> None:
    numbers = random.Random(7)
    paths = ["sleep/{}/transaction", "sleep/{}/session", "sleep/{}/autocommit", "sync-sleep/{}"]
    variables = environment(module_stack, path, MIDDLEWARE="1")
    statuses = set()
    async with Fleet(variables, handler=HANDLER, timeout=0.7) as fleet:
        warm = await fleet.invoke(get("now"))
        for number in range(RACES):
            milliseconds = numbers.randrange(120, 280)  # 0.2 s are left for the query
            result = await fleet.invoke(get(paths[number % 4].format(milliseconds)))
            status, body = result.payload["statusCode"], result.payload["body"]
            statuses.add(status)
            assert status in (200, 504), result.payload
            assert status == 504 or body == str(milliseconds)
            assert result.pid == warm.pid
        assert statuses == {200, 504}
        assert await stays_idle(admin, 0.3)


async def test_a_background_task_past_the_deadline_is_cancelled_after_the_200(
    module_stack: Stack, admin: PgConnection, capfd: pytest.CaptureFixture[str]
) -> None:
    async with Fleet(environment(module_stack, "pgbouncer"), handler=HANDLER, timeout=2) as fleet:
        await fleet.invoke(get("now"))
        async with locked_row(module_stack):
            result = await fleet.invoke(get("background"))
            assert (result.payload["statusCode"], result.payload["body"]) == (200, '"accepted"')
            assert await stays_idle(admin, 0.5)
    line = log_lines(capfd.readouterr().out)[-1]
    assert (line["status"], line["outcome"]) == (200, "ok")
    assert line["cause"] == "a background task did not end in time"


async def test_a_task_left_by_a_route_is_cancelled_after_the_response(
    module_stack: Stack, admin: PgConnection
) -> None:
    async with Fleet(environment(module_stack, "pgbouncer"), handler=HANDLER, timeout=9) as fleet:
        await fleet.invoke(get("now"))
        async with locked_row(module_stack):
            assert (await fleet.invoke(get("forgotten-task"))).payload["statusCode"] == 200
            assert await stays_idle(admin, 0.5)
        for _ in range(3):
            assert (await fleet.invoke(get("now"))).payload["body"] == '"before"'


@pytest.mark.parametrize("route", ["blocking", "blocking-in-an-executor"])
async def test_a_thread_running_after_its_504_cannot_query(
    module_stack: Stack, admin: PgConnection, route: str
) -> None:
    async with Fleet(environment(module_stack, "pgbouncer"), handler=HANDLER, timeout=2) as fleet:
        warm = await fleet.invoke(get("now"))
        started = time.monotonic()
        assert (await fleet.invoke(get(route))).payload["statusCode"] == 504
        assert time.monotonic() - started < 2
        await fleet.invoke(get("idle"))  # the thread continues, and the connection is free
        while time.monotonic() - started < 3.5:
            after = await fleet.invoke(get("now"))
            assert (after.payload["body"], after.pid) == ('"before"', warm.pid)


@pytest.mark.parametrize("middleware", ["", "1"], ids=["plain", "under_middleware"])
async def test_a_500_passes_through_application_middleware(
    module_stack: Stack, middleware: str
) -> None:
    variables = environment(module_stack, "pgbouncer", MIDDLEWARE=middleware)
    async with Fleet(variables, handler=HANDLER) as fleet:
        result = await fleet.invoke(get("error"))
    assert result.payload["statusCode"] == 500
    assert ("x-added" in result.payload["headers"]) == bool(middleware)
    assert json.loads(result.payload["body"])["title"] == "Internal Server Error"


@pytest.mark.parametrize("warm", [False, True], ids=["cold", "warm"])
async def test_a_scheduled_event_ends_in_time_when_pgbouncer_does_not_respond(
    module_stack: Stack, warm: bool
) -> None:
    schedule = {"source": "aws.scheduler"}
    with module_stack.another_pgbouncer() as bouncer:
        variables = module_stack.environment(through=bouncer)
        async with Fleet(variables, handler=HANDLER, timeout=3) as fleet:
            before = await fleet.invoke(get("now" if warm else "missing"))
            assert bouncer.process
            bouncer.process.send_signal(signal.SIGSTOP)
            try:
                result = await fleet.invoke(schedule)
            finally:
                bouncer.process.send_signal(signal.SIGCONT)
            assert result.payload["warm"] is False
            after = await fleet.invoke(get("now"))
            assert (after.payload["statusCode"], after.pid) == (200, before.pid)
