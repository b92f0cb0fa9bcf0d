"""Reads are correct while a migration changes the table under a warm execution environment."""

import json
from typing import Any

import pytest
from alembic import command
from sqlalchemy.exc import DBAPIError

from infra.database import schema
from infra.database.roles import OWNER
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import PgConnection, run
from tests.events import http_api

#: Migrations, applied in this order.
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


async def test_reads_stay_correct_and_all_but_the_first_take_one_round_trip(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    bouncer = own_stack.pgbouncer
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        async with Fleet(own_stack.environment() | {"DB_PORT": str(proxy.port)}) as fleet:

            async def order(order_id: int) -> dict[str, Any]:
                result = await fleet.invoke(http_api("GET", f"/orders/{order_id}"))
                assert result.payload["statusCode"] == 200, result
                return dict(json.loads(result.payload["body"]))

            before = {order_id: await order(order_id) for order_id in (1, 5, 999)}
            for change in CHANGES:
                await own_admin.execute(change)
                # The handler retries when it notices the changed columns.
                assert await order(1) == before[1], change
                proxy.reset_counters()
                after = {order_id: await order(order_id) for order_id in before}
                assert after == before, change
                assert all(type(value["id"]) is int for value in after.values()), change
                assert (proxy.round_trips, proxy.connections) == (len(before), 0), change


async def test_values_of_a_widened_column_are_not_truncated(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    long_name = "Amber Bakery " * 20
    async with Fleet(own_stack.environment()) as fleet:
        await fleet.invoke(http_api("GET", "/orders/1"))
        await own_admin.execute("ALTER TABLE orders ALTER customer_name TYPE text")
        await own_admin.execute("UPDATE orders SET customer_name = $1 WHERE id = 1", long_name)
        result = await fleet.invoke(http_api("GET", "/orders/1"))
        assert json.loads(result.payload["body"])["customer_name"] == long_name


async def test_a_value_that_no_longer_fits_the_type_has_status_500(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    async with Fleet(own_stack.environment()) as fleet:
        await fleet.invoke(http_api("GET", "/orders/1"))
        await own_admin.execute(
            "ALTER TABLE orders ALTER status DROP DEFAULT, ALTER status TYPE integer USING 7"
        )
        result = await fleet.invoke(http_api("GET", "/orders/1"))
        assert result.payload["statusCode"] == 500
        await own_admin.execute("ALTER TABLE orders DROP status")
        result = await fleet.invoke(http_api("GET", "/orders/1"))
        assert result.payload["statusCode"] == 500


async def test_migrating_again_changes_nothing_and_models_match_the_schema(
    own_stack: Stack,
) -> None:
    owner = own_stack.settings(user=OWNER)
    await schema.migrate(owner)
    await schema.migrate(owner, command.check)  # raises if autogenerate finds a difference


def test_migrations_run_from_the_alembic_command_line(own_stack: Stack) -> None:
    owner = own_stack.settings(user=OWNER)
    environment = {
        "DB_HOST": owner.host,
        "DB_PORT": str(owner.port),
        "DB_USER": owner.user,
        "DB_PASS": owner.password.get_secret_value(),
    }
    for arguments in (["current"], ["downgrade", "base"], ["upgrade", "head"], ["current"]):
        status, output = run("-m", "alembic", *arguments, env=environment)
        assert status == 0, output
    assert "(head)" in output


async def test_downgrading_and_upgrading_keeps_the_orders(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    settings = own_stack.settings(user=OWNER)
    event = http_api("POST", "/orders", body='{"customer_name": "Red Ropes"}', idempotency_key="k")
    async with Fleet(own_stack.environment()) as fleet:
        created = (await fleet.invoke(event)).payload
        before = await own_admin.fetch("SELECT * FROM orders ORDER BY id")
        await schema.migrate(settings, lambda config: command.downgrade(config, "0001"))
        assert await own_admin.fetch("SELECT * FROM orders ORDER BY id") == before
        assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200
        assert (await fleet.invoke(event)).payload["statusCode"] == 503  # its table is missing
        assert await own_admin.fetch("SELECT * FROM orders ORDER BY id") == before
        await schema.migrate(settings)
        replay = (await fleet.invoke(event)).payload
        assert replay["statusCode"] == 201
        assert json.loads(replay["body"])["id"] > json.loads(created["body"])["id"]


async def test_a_migration_that_waits_for_a_lock_gives_up_quickly(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    """A waiting ALTER TABLE would block every later read."""
    settings = own_stack.settings(user=OWNER)
    async with own_admin.transaction():
        await own_admin.execute("SELECT * FROM orders LIMIT 1")  # such as a long report
        with pytest.raises(DBAPIError, match="lock timeout"):
            await schema.migrate(settings, lambda config: command.downgrade(config, "0001"))
    async with Fleet(own_stack.environment()) as fleet:
        assert (await fleet.invoke(http_api("GET", "/orders"))).payload["statusCode"] == 200
