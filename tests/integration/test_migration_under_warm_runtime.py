"""A migration under a warm runtime: every answer right, never a wrong value."""

import json
from collections.abc import AsyncIterator
from typing import Any

import asyncpg
import pytest
from alembic import command
from sqlalchemy import ARRAY, CHAR, String
from sqlalchemy.exc import DBAPIError

from handler.pinned import Pinned
from infra.database import schema
from infra.database.roles import OWNER
from infra.local.fleet import Fleet
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.conftest import run
from tests.events import http_api

#: Applied one after the other, each to what the one before made of the table.
CHANGES = [
    "ALTER TABLE orders ALTER id TYPE bigint",
    "ALTER TABLE orders ALTER customer_name TYPE text",
    "ALTER TABLE orders ADD note text DEFAULT 'none'",
    "ALTER TABLE orders DROP note",
    "ALTER TABLE orders ALTER status TYPE varchar(64)",
    "ALTER TABLE orders ALTER id TYPE real",
    "ALTER TABLE orders ALTER id TYPE numeric(20, 4)",
    "ALTER TABLE orders ALTER id TYPE integer",
]


@pytest.fixture
async def owner(own_stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
    yield connection
    await connection.close()


async def test_no_answer_is_ever_wrong_and_each_is_one_round_trip(
    own_stack: Stack, owner: "asyncpg.Connection[Any]"
) -> None:
    bouncer = own_stack.pgbouncer
    with Relay(bouncer.host, bouncer.port) as relay:
        environment = own_stack.environment() | {"DB_PORT": str(relay.port)}
        async with Fleet(environment) as fleet:

            async def order(order_id: int) -> dict[str, Any]:
                answer = await fleet.invoke(http_api("GET", f"/orders/{order_id}"))
                assert answer.payload["statusCode"] == 200, answer
                return dict(json.loads(answer.payload["body"]))

            before = {order_id: await order(order_id) for order_id in (1, 5, 999)}
            for change in CHANGES:
                await owner.execute(change)
                relay.reset()
                after = {order_id: await order(order_id) for order_id in before}
                assert after == before, change
                assert all(type(value["id"]) is int for value in after.values()), change
                assert (relay.round_trips, relay.connections) == (len(before), 0), change


async def test_what_a_widened_column_has_come_to_hold_is_not_cut(
    own_stack: Stack, owner: "asyncpg.Connection[Any]"
) -> None:
    long = "Amber Bakery " * 20
    async with Fleet(own_stack.environment()) as fleet:
        await fleet.invoke(http_api("GET", "/orders/1"))
        await owner.execute("ALTER TABLE orders ALTER customer_name TYPE text")
        await owner.execute("UPDATE orders SET customer_name = $1 WHERE id = 1", long)
        answer = await fleet.invoke(http_api("GET", "/orders/1"))
        assert json.loads(answer.payload["body"])["customer_name"] == long


async def test_a_value_that_does_not_fit_the_type_any_more_is_an_error(
    own_stack: Stack, owner: "asyncpg.Connection[Any]"
) -> None:
    async with Fleet(own_stack.environment()) as fleet:
        await fleet.invoke(http_api("GET", "/orders/1"))
        await owner.execute(
            "ALTER TABLE orders ALTER status DROP DEFAULT, ALTER status TYPE integer USING 7"
        )
        answer = await fleet.invoke(http_api("GET", "/orders/1"))
        assert json.loads(answer.payload["body"])["status"] == "7"
        await owner.execute("ALTER TABLE orders DROP status")
        answer = await fleet.invoke(http_api("GET", "/orders/1"))
        assert answer.payload["statusCode"] == 500


async def test_migrating_again_changes_nothing_and_the_models_agree_with_the_schema(
    own_stack: Stack,
) -> None:
    owner = own_stack.settings(user=OWNER)
    await schema.migrate(owner)
    await schema.migrate(owner, command.check)  # raises where autogenerate would find a difference


def test_the_migrations_run_from_alembic_s_command_line_too(own_stack: Stack) -> None:
    owner = own_stack.settings(user=OWNER)
    environment = {
        "DB_HOST": owner.host,
        "DB_PORT": str(owner.port),
        "DB_USER": owner.user,
        "DB_PASS": owner.password.get_secret_value(),
    }
    for words in (["current"], ["downgrade", "base"], ["upgrade", "head"], ["current"]):
        code, output = run("-m", "alembic", *words, env=environment)
        assert code == 0, output
    assert "(head)" in output


async def test_a_migration_comes_down_and_up_again_and_the_orders_stay(
    own_stack: Stack, owner: "asyncpg.Connection[Any]"
) -> None:
    settings = own_stack.settings(user=OWNER)
    place = http_api("POST", "/orders", body='{"customer_name": "Red Ropes"}', idempotency_key="k")
    async with Fleet(own_stack.environment()) as fleet:
        placed = (await fleet.invoke(place)).payload
        before = await owner.fetch("SELECT * FROM orders ORDER BY id")
        await schema.migrate(settings, lambda config: command.downgrade(config, "0001"))
        assert await owner.fetch("SELECT * FROM orders ORDER BY id") == before
        assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200
        assert (await fleet.invoke(place)).payload["statusCode"] == 503  # no table, no order
        assert await owner.fetch("SELECT * FROM orders ORDER BY id") == before
        await schema.migrate(settings)
        again = (await fleet.invoke(place)).payload
        assert again["statusCode"] == 201
        assert json.loads(again["body"])["id"] > json.loads(placed["body"])["id"]


async def test_a_migration_that_cannot_have_its_lock_gives_up_before_it_stops_the_traffic(
    own_stack: Stack, owner: "asyncpg.Connection[Any]"
) -> None:
    """A waiting ALTER TABLE stops every later read behind it."""
    settings = own_stack.settings(user=OWNER)
    async with owner.transaction():
        await owner.execute("SELECT * FROM orders LIMIT 1")  # a long report, say
        with pytest.raises(DBAPIError, match="lock timeout"):
            await schema.migrate(settings, lambda config: command.downgrade(config, "0001"))
    async with Fleet(own_stack.environment()) as fleet:
        assert (await fleet.invoke(http_api("GET", "/orders"))).payload["statusCode"] == 200


@pytest.mark.parametrize("bounded", [CHAR(3), ARRAY(String(3))], ids=str)
def test_a_type_that_is_another_one_without_its_bounds_is_not_pinned(bounded: Any) -> None:
    with pytest.raises(TypeError, match="cast it in the query"):
        Pinned(bounded)
