"""Only a created order uses up an id."""

import asyncio
import itertools
import json
import uuid
from typing import Any

import pytest

from handler import orders
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import Lambda, PgConnection, administrator
from tests.events import http_api
from tests.integration.engines import handler_engine, handler_engines
from tests.integration.failing_fleet import LoggedFleet, write

LAST_ID = "SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM orders_id_seq"
ORDER = {"customer_name": "Red Sails", "status": "pending"}
PARAMETERS = {"caller": "", "body_sha256": "0" * 64, **ORDER}


def post(key: str, name: str) -> dict[str, Any]:
    return http_api(
        "POST", "/orders", body=json.dumps({"customer_name": name}), idempotency_key=key
    )


async def test_a_thousand_repeated_and_rejected_requests_use_one_id(
    lambda_handler: Lambda, admin: PgConnection
) -> None:
    key, before = str(uuid.uuid4()), await admin.fetchval(LAST_ID)
    statuses = [lambda_handler(post(key, "Red Sails"))["statusCode"] for _ in range(500)]
    assert set(statuses) == {201}
    rejected = [lambda_handler(post(key, "Blue Sails"))["statusCode"] for _ in range(500)]
    assert set(rejected) == {409}
    assert await admin.fetchval(LAST_ID) == before + 1


async def test_fifty_concurrent_requests_with_one_key_use_one_id(
    stack: Stack, admin: PgConnection
) -> None:
    """Each request waits for the first, and none takes an id meanwhile."""
    settings = stack.settings(through=stack.pgbouncer)
    before = await admin.fetchval(LAST_ID)
    parameters = {"key": str(uuid.uuid4()), **PARAMETERS}

    async def place(number: int) -> int:
        async with engines[number % 10].connect() as connection:
            return int((await connection.execute(orders.PLACE, parameters)).one().order_id)

    async with handler_engines(settings, 10) as engines:
        order_ids = await asyncio.gather(*map(place, range(50)))
    assert set(order_ids) == {before + 1}
    assert await admin.fetchval(LAST_ID) == before + 1


async def test_a_failed_order_leaves_nothing_behind(stack: Stack, admin: PgConnection) -> None:
    key = str(uuid.uuid4())
    async with handler_engine(stack.settings()) as engine, engine.connect() as connection:
        with pytest.raises(Exception, match="value too long"):
            await connection.execute(
                orders.PLACE, {"key": key, **PARAMETERS, "customer_name": "x" * 121}
            )
    assert not await admin.fetchval("SELECT 1 FROM order_requests WHERE key = $1", key)


async def test_exhausted_ids_are_reported_and_stored_responses_still_work(
    own_stack: Stack, tmp_path: Any
) -> None:
    async with (
        administrator(own_stack) as admin,
        LoggedFleet(own_stack.environment(), tmp_path) as fleet,
    ):
        first = await fleet.invoke(write("first"))
        await admin.execute(f"SELECT setval('orders_id_seq', {orders.MAX_ID})")
        assert (await fleet.invoke(write("second"))).payload["statusCode"] == 500
        assert fleet.last["sqlstate"] == "2200H"
        assert fleet.last["cause"].startswith("no ids are left: nextval: reached maximum value")
        replay = await fleet.invoke(write("first"))
        assert replay.payload["statusCode"] == 201
        assert replay.payload["body"] == first.payload["body"]


async def test_old_and_new_code_find_each_others_keys(stack: Stack, admin: PgConnection) -> None:
    """Both versions run during a rollout."""
    oldest = """
        INSERT INTO order_requests AS request (key, body_sha256) VALUES ($1, $2)
        ON CONFLICT (key) DO UPDATE SET key = request.key
        RETURNING request.order_id, request.xmax = 0
    """
    old = "SELECT order_id, is_new FROM place_order($1, $2, 'Red Sails', 'pending')"
    new = "SELECT order_id, is_new FROM place_order('Amber', $1, $2, 'Red Sails', 'pending')"
    for first, second in itertools.permutations((oldest, old, new), 2):
        key = str(uuid.uuid4())
        [(order_id, is_new)] = await admin.fetch(first, key, "0" * 64)
        [replay] = await admin.fetch(second, key, "0" * 64)
        assert (is_new, tuple(replay)) == (True, (order_id, False))


async def test_a_backlog_of_old_keys_is_deleted_in_one_event(own_stack: Stack) -> None:
    async with administrator(own_stack) as admin:
        await admin.execute(
            "INSERT INTO order_requests SELECT n::text, 'x', n, now() - interval '2 days'"
            " FROM generate_series(1, 5500) AS n"
        )
        async with Fleet(own_stack.environment()) as fleet:
            result = await fleet.invoke({"source": "aws.events", "detail": {}})
        assert result.payload == {"warm": True, "forgotten": 5500}


async def test_deleting_old_keys_stops_before_the_deadline(own_stack: Stack) -> None:
    """With less than FORGET_MARGIN left no batch is started, and none is interrupted."""
    async with administrator(own_stack) as admin:
        await admin.execute(
            "INSERT INTO order_requests SELECT n::text, 'x', n, now() - interval '2 days'"
            " FROM generate_series(1, 10) AS n"
        )
        async with Fleet(own_stack.environment(), timeout=orders.FORGET_MARGIN) as fleet:
            result = await fleet.invoke({"source": "aws.events", "detail": {}})
        assert result.payload == {"warm": True, "forgotten": 0}
