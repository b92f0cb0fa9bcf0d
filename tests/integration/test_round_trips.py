"""Reads take the documented round trips, as counted by a client and as logged by Postgres."""

import asyncio
import contextlib
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import inspect
from sqlalchemy.exc import NotSupportedError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from handler import orders
from infra.database.roles import APP
from infra.local import system_packages
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import ColdHandler, PgConnection, eventually, set_environment
from tests.integration.engines import handler_engine, handler_engines

WARM, COLD, COLD_WITH_TLS = 1, 5, 7

#: Matches the messages that Postgres logs with log_min_duration_statement = 0.
STEP = re.compile(
    rf"{APP} \S+ LOG:  duration: \S+ ms  (statement|parse|bind|execute)(?: (\S+))?: (.*)"
)
pgbouncer = system_packages.find_pgbouncer()
#: PgBouncer has the setting `max_prepared_statements` since 1.21.
MAX_PREPARED = [0, 200] if pgbouncer and pgbouncer.version >= (1, 21) else [None]


@contextlib.contextmanager
def path_to_postgres(stack: Stack, path: str) -> Iterator[dict[str, str]]:
    if path == "direct":
        yield stack.environment(direct=True)
    else:
        with stack.another_pgbouncer(tls=path == "pgbouncer, TLS") as bouncer:
            yield stack.environment(bouncer)


@pytest.mark.parametrize(
    ("path", "cold"), [("direct", COLD), ("pgbouncer", COLD), ("pgbouncer, TLS", COLD_WITH_TLS)]
)
def test_cold_and_warm_reads_take_the_documented_round_trips(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, path: str, cold: int
) -> None:
    with (
        path_to_postgres(stack, path) as environment,
        # The delay separates TLS 1.3's session tickets, which the client does not wait for.
        TcpProxy(environment["DB_HOST"], int(environment["DB_PORT"]), delay=0.1) as proxy,
    ):
        set_environment(monkeypatch, environment | {"DB_PORT": str(proxy.port)})
        with ColdHandler() as invoke:
            assert proxy.connections == 0
            for order_id, round_trips, connections in ((1, cold, 1), (2, WARM, 0), (999, WARM, 0)):
                proxy.reset_counters()
                response = invoke(api_gateway_event("GET", f"/orders/{order_id}"))
                assert json.loads(response["body"])["id"] == order_id
                assert (proxy.round_trips, proxy.connections) == (round_trips, connections)


def steps(stack: Stack) -> list[tuple[str, str, str]]:
    """Return the kind, statement name and text of each step Postgres logged for the application."""
    return STEP.findall(stack.postgres.log_since_start())


async def test_postgres_receives_only_the_select(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, own_admin: PgConnection
) -> None:
    """There is no BEGIN, no ping (`;`), no query of SQLAlchemy's own and no named statement."""
    await own_admin.execute(f"ALTER ROLE {APP} SET log_min_duration_statement = 0")
    set_environment(monkeypatch, own_stack.environment())
    with ColdHandler() as invoke:
        for order_id in (1, 2, 3):
            assert invoke(api_gateway_event("GET", f"/orders/{order_id}"))["statusCode"] == 200
    eventually(lambda: [kind for kind, *_ in steps(own_stack)].count("execute") >= 3)
    # PgBouncer sends SET and DISCARD itself, while no client waits.
    client_steps = [
        step for step in steps(own_stack) if not step[2].startswith(("SET ", "DISCARD "))
    ]
    read = [("parse", "<unnamed>"), ("bind", "<unnamed>"), ("execute", "<unnamed>")]
    # The first time, asyncpg asks for the parameter types before it sends values.
    assert [step[:2] for step in client_steps] == [read[0], *read, *read, *read], client_steps
    assert {step[2].split()[0] for step in client_steps} == {"SELECT"}, client_steps


async def test_assumed_server_settings_match_postgres(stack: Stack) -> None:
    settings = stack.settings(through=stack.pgbouncer)
    async with handler_engine(settings) as warm_engine, warm_engine.connect() as connection:
        expected_settings = {
            "standard_conforming_strings": "on",
            "transaction_isolation": (warm_engine.dialect.default_isolation_level or "").lower(),
            "search_path": await connection.run_sync(lambda sync: sync.dialect.default_schema_name),
        }
        assert warm_engine.dialect._backslash_escapes is False  # type: ignore[attr-defined]  # Postgres' own
        for setting, value in expected_settings.items():
            result = await connection.exec_driver_sql(f"SHOW {setting}")
            assert str(result.scalar_one()).split(", ")[-1] == value, setting
        version = await connection.exec_driver_sql("SHOW server_version")
        major = int(version.scalar_one().partition(".")[0])
        assert (warm_engine.dialect.server_version_info or ())[0] == major
        tables = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert {"orders", "order_requests"} <= set(tables)


@pytest.mark.parametrize("max_prepared", MAX_PREPARED)
async def test_ten_thousand_reads_and_writes_across_a_migration_are_correct(
    own_stack: Stack, max_prepared: int | None, own_admin: PgConnection
) -> None:
    """Twenty engines share three server connections, so each statement meets different servers."""
    three_connections: dict[str, str | int] = {"default_pool_size": 3, "reserve_pool_size": 0}
    prepared_setting: dict[str, str | int] = (
        {} if max_prepared is None else {"max_prepared_statements": max_prepared}
    )
    names = dict(await own_admin.fetch("SELECT id, customer_name FROM orders"))
    with own_stack.another_pgbouncer(settings=three_connections | prepared_setting) as bouncer:
        halfway, migrated = asyncio.Barrier(21), asyncio.Barrier(21)

        async def read_and_write(number: int) -> None:
            for step in range(500):
                if step == 250:
                    await halfway.wait()
                if step == 260:  # so that the migration meets warm statements under traffic
                    await migrated.wait()
                if step % 10:
                    order_id = 1 + (number * 500 + step) % len(names)
                    order = await find(engines[number], order_id)
                    assert (order.id, order.customer_name) == (order_id, names[order_id])
                else:
                    await place(engines[number], f"{number}-{step}")

        async def migrate() -> None:
            await halfway.wait()
            await own_admin.execute("ALTER TABLE orders ALTER id TYPE bigint")
            await own_admin.execute("ALTER TABLE orders ALTER customer_name TYPE text")
            await migrated.wait()

        async with handler_engines(own_stack.settings(through=bouncer), 20) as engines:
            async with asyncio.TaskGroup() as group:
                group.create_task(migrate())
                for number in range(20):
                    group.create_task(read_and_write(number))
            new_orders = await own_admin.fetch(
                "SELECT id, customer_name FROM orders WHERE id > 1000"
            )
            assert {row["customer_name"] for row in new_orders} == {
                f"{number}-{step}" for number in range(20) for step in range(0, 500, 10)
            }
            await assert_no_named_statements(bouncer, engines[0])


async def find(engine: AsyncEngine, order_id: int) -> orders.Order:
    async with AsyncSession(engine, expire_on_commit=False) as session:
        for _ in range(2):
            try:
                return (await session.scalars(orders.BY_ID, {"id": order_id})).one()
            except NotSupportedError:
                pass  # the migration has two changes, and each fails one read
        return (await session.scalars(orders.BY_ID, {"id": order_id})).one()


async def place(engine: AsyncEngine, name: str) -> None:
    order = {"body_sha256": "", "customer_name": name, "status": "pending"}
    values = {"caller": "", "key": name, **order}
    async with engine.connect() as connection:
        assert (await connection.execute(orders.PLACE, values)).one().is_new


async def assert_no_named_statements(bouncer: PgBouncer, engine: AsyncEngine) -> None:
    pool: dict[str, Any] = next(row for row in bouncer.show("POOLS") if row["user"] == APP)
    assert pool["sv_active"] + pool["sv_idle"] + pool["sv_used"] <= 3
    async with engine.connect() as connection:
        for _ in range(10):  # so that all three server connections are likely to be checked
            count = await connection.exec_driver_sql("SELECT count(*) FROM pg_prepared_statements")
            assert count.scalar_one() == 0
