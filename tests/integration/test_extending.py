"""The public API suffices for other tables, synchronous code and tests without Postgres."""

import asyncio
import json
from functools import cache

import httpx
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from handler import orders
from handler.app import app
from handler.warm.database import engine
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import (
    PgConnection,
    app_clients,
    psycopg_url,
    reset_engine_cache,
    set_environment,
)
from tests.events import http_api

READ_CUSTOMER_ORDERS = http_api("GET", "/customers/7/orders")


@pytest.fixture
async def owner(own_admin: PgConnection) -> PgConnection:
    """Create the second table and return a connection that may change it."""
    await own_admin.execute("CREATE TABLE customers (id integer PRIMARY KEY, name varchar(120))")
    await own_admin.execute("GRANT SELECT ON customers TO appuser")
    await own_admin.execute("INSERT INTO customers VALUES (7, 'Teal Tools'), (8, 'Nobody')")
    return own_admin


async def test_a_related_table_is_loaded_in_two_round_trips(
    own_stack: Stack, owner: PgConnection
) -> None:
    """After a migration, one retry is enough for a correct read, as for the first table."""
    rows = await owner.fetch("SELECT id FROM orders WHERE customer_name = 'Teal Tools'")
    bouncer = own_stack.pgbouncer
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        environment = own_stack.environment() | {"DB_PORT": str(proxy.port)}
        async with Fleet(environment, handler="tests.integration.customers.handler") as fleet:

            async def ids() -> list[int]:
                result = await fleet.invoke(READ_CUSTOMER_ORDERS)
                assert result.payload["statusCode"] == 200
                return [order["id"] for order in json.loads(result.payload["body"])]

            assert await ids() == [row["id"] for row in rows]
            body = json.dumps({"customer_name": "Teal Tools"})
            created = await fleet.invoke(
                http_api("POST", "/orders", body=body, idempotency_key="7")
            )
            new_id = json.loads(created.payload["body"])["id"]
            for new_type in ("integer", "bigint", "real"):
                await owner.execute(f"ALTER TABLE customers ALTER id TYPE {new_type}")
                assert await ids() == [*(row["id"] for row in rows), new_id]  # after a retry
                proxy.reset_counters()
                assert await ids() == [*(row["id"] for row in rows), new_id]
                assert (proxy.round_trips, proxy.connections) == (2, 0)
            without_orders = await fleet.invoke(http_api("GET", "/customers/8/orders"))
            assert json.loads(without_orders.payload["body"]) == []
            missing = await fleet.invoke(http_api("GET", "/customers/9/orders"))
            assert missing.payload["statusCode"] == 404


# --- Synchronous code ----------------------------------------------------------------------------


async def test_a_synchronous_route_queries_on_the_engine_loop(
    own_stack: Stack, owner: PgConnection
) -> None:
    environment = own_stack.environment()
    async with Fleet(environment, handler="tests.integration.customers.handler") as fleet:
        for _ in range(3):
            result = await fleet.invoke(http_api("GET", "/customers/7"))
            assert (result.payload["statusCode"], result.payload["body"]) == (200, '"Teal Tools"')
        assert len(app_clients(own_stack.pgbouncer)) == 1


async def test_a_thread_submits_its_query_to_the_engine_loop(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, stack.environment())
    reset_engine_cache()
    loop = asyncio.get_running_loop()

    def find_from_thread() -> str:
        order = asyncio.run_coroutine_threadsafe(orders.find(1), loop).result(10)
        assert order
        return order.customer_name

    try:
        assert await asyncio.to_thread(find_from_thread) == "Amber Bakery"
    finally:
        await engine.dispose()


@pytest.mark.parametrize("threshold", [None, 5], ids=["as advised", "psycopg's default"])
def test_a_separate_synchronous_engine_can_use_unnamed_statements(
    stack: Stack, threshold: int | None
) -> None:
    """psycopg names a statement after five executions; another client of the pool could meet it."""
    one_connection: dict[str, str | int] = {"default_pool_size": 1, "reserve_pool_size": 0}
    with stack.another_pgbouncer(settings=one_connection) as bouncer:
        settings = stack.settings(through=bouncer)
        url = psycopg_url(settings, sslmode=settings.effective_sslmode, sslrootcert=str(bouncer.ca))
        arguments = {"prepare_threshold": threshold}
        synchronous_engine = create_engine(url, pool_size=1, max_overflow=0, connect_args=arguments)
        try:
            with synchronous_engine.connect() as connection:
                for _ in range(10):
                    assert connection.execute(orders.BY_ID, {"id": 1}).one()
                named_statements = connection.scalar(
                    text("SELECT count(*) FROM pg_prepared_statements")
                )
        finally:
            synchronous_engine.dispose()
        assert named_statements == (0 if threshold is None else 1)


# --- A test without Postgres ---------------------------------------------------------------------


async def test_a_route_that_reads_can_be_tested_on_sqlite(monkeypatch: pytest.MonkeyPatch) -> None:
    sqlite_engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    monkeypatch.setattr(engine, "get_engine", cache(lambda: sqlite_engine))
    async with sqlite_engine.begin() as connection:
        await connection.run_sync(orders.Base.metadata.create_all)
    async with AsyncSession(sqlite_engine) as session:
        session.add(orders.Order(customer_name="Blue Bottles"))
        await session.commit()
    try:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        assert (await client.get("/orders/1")).json()["customer_name"] == "Blue Bottles"
        assert (await client.get("/orders?status=paid")).json()["orders"] == []
        assert (await client.get("/orders/2")).status_code == 404
    finally:
        await engine.dispose()
