"""One engine per execution environment: one loop, one raw connection, one round trip."""

import asyncio
import contextlib
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from handler import orders
from handler.warm.database import credentials, engine
from handler.warm.database.engine import create_engine
from handler.warm.settings import Settings, SettingsError
from infra.database.roles import APP
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import Lambda, PgConnection, app_clients, eventually
from tests.integration.engines import handler_engine, handler_engines

ORDER_1 = '{"id":1,"customer_name":"Amber Bakery","status":"pending"}'


def get(path: str) -> dict[str, Any]:
    return api_gateway_event("GET", path)


def test_an_order_is_read_through_pgbouncer(lambda_handler: Lambda) -> None:
    response = lambda_handler(get("/orders/1"))
    assert (response["statusCode"], response["body"]) == (200, ORDER_1)


def test_invocations_share_one_engine_one_loop_and_one_raw_connection(
    lambda_handler: Lambda, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mangum 0.20 calls `asyncio.run` for each invocation, which closes the loop and connection."""
    ids = []
    find = orders.find

    async def find_and_record(order_id: int) -> orders.Order | None:
        order = await find(order_id)
        async with engine.get_engine().connect() as connection:
            driver_connection = (await connection.get_raw_connection()).driver_connection
        ids.append((id(engine.get_engine()), id(asyncio.get_running_loop()), id(driver_connection)))
        return order

    monkeypatch.setattr(orders, "find", find_and_record)
    for _ in range(3):
        assert lambda_handler(get("/orders/1"))["statusCode"] == 200
    assert len(set(ids)) == 1, ids


def test_importing_the_handler_opens_no_connection(lambda_handler: Lambda) -> None:
    assert lambda_handler(get("/health"))["statusCode"] == 200
    assert engine.get_engine().pool.checkedin() == 0  # type: ignore[attr-defined]  # it is a QueuePool


@contextlib.contextmanager
def path_to_postgres(stack: Stack, path: str) -> Iterator[Settings]:
    if path == "direct":
        yield stack.settings()
    else:
        with stack.another_pgbouncer(tls=path == "pgbouncer, TLS") as bouncer:
            yield stack.settings(through=bouncer)


@pytest.mark.parametrize("path", ["direct", "pgbouncer", "pgbouncer, TLS"])
async def test_a_warm_read_is_exactly_one_round_trip(stack: Stack, path: str) -> None:
    with path_to_postgres(stack, path) as settings, TcpProxy(settings.host, settings.port) as proxy:
        async with handler_engine(settings.model_copy(update={"port": proxy.port})) as warm_engine:
            assert await read(warm_engine, 1) == "Amber Bakery"
            for order_id in (2, 3, 1):
                proxy.reset_counters()
                await read(warm_engine, order_id)
                assert (proxy.round_trips, proxy.connections) == (1, 0)


async def read(warm_engine: AsyncEngine, order_id: int) -> str | None:
    async with AsyncSession(warm_engine, expire_on_commit=False) as session:
        order = await session.scalar(orders.BY_ID, {"id": order_id})
    return order.customer_name if order else None


async def test_twenty_sandboxes_share_three_server_connections_correctly(
    stack: Stack, admin: PgConnection
) -> None:
    with stack.another_pgbouncer(settings={"default_pool_size": 3}) as bouncer:
        settings = stack.settings(through=bouncer)
        names = dict(await admin.fetch("SELECT id, customer_name FROM orders"))

        async def twenty_reads(number: int) -> None:
            for order_id in range(1 + number, 401 + number, 20):
                assert await read(engines[number], order_id) == names[order_id]

        async with handler_engines(settings, 20) as engines:
            await asyncio.gather(*map(twenty_reads, range(20)))
            pool = next(row for row in bouncer.show("POOLS") if row["user"] == APP)
            assert pool["cl_active"] == 20
            assert pool["sv_active"] + pool["sv_idle"] + pool["sv_used"] <= 3


async def test_no_named_statement_is_left_on_a_server(stack: Stack) -> None:
    async with handler_engine(stack.settings()) as warm_engine:
        for order_id in (1, 2, 3):
            await read(warm_engine, order_id)
        async with warm_engine.connect() as connection:
            count = await connection.scalar(text("SELECT count(*) FROM pg_prepared_statements"))
        assert count == 0


async def test_dispose_closes_the_connection_cleanly(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        warm_engine = create_engine(stack.settings(through=bouncer), isolation_level="AUTOCOMMIT")
        await read(warm_engine, 1)
        await warm_engine.dispose()
        eventually(lambda: not app_clients(bouncer))
        ends = [
            line
            for line in bouncer.log_since_start().splitlines()
            if f"/{APP}@" in line and "closing" in line
        ]
        assert len(ends) == 1
        assert "client close request" in ends[0]


async def test_an_idle_sandbox_holds_a_client_connection_but_no_transaction(
    stack: Stack, admin: PgConnection
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with handler_engine(stack.settings(through=bouncer)) as warm_engine:
            await read(warm_engine, 1)
            pool = next(row for row in bouncer.show("POOLS") if row["user"] == APP)
            assert (pool["cl_active"], pool["sv_active"]) == (1, 0)
            states = await admin.fetch("SELECT state FROM pg_stat_activity WHERE usename = $1", APP)
            assert {row["state"] for row in states} == {"idle"}


async def test_every_raw_connection_uses_the_current_credential(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    settings = stack.settings()

    async def login(refused: credentials.Login | None) -> credentials.Login:
        calls.append(1)
        return settings.user, settings.password.get_secret_value()

    monkeypatch.setattr(credentials, "from_settings", lambda settings: login)
    async with handler_engine(settings) as warm_engine:
        await read(warm_engine, 1)
        await read(warm_engine, 2)
        assert len(calls) == 1
        await warm_engine.dispose()
        await read(warm_engine, 1)
        assert len(calls) == 2


@pytest.mark.parametrize(
    ("setting", "value"),
    [("statement_timeout", "5s"), ("idle_in_transaction_session_timeout", "5s"), ("jit", "off")],
)
async def test_role_settings_apply_through_pgbouncer(
    stack: Stack, setting: str, value: str
) -> None:
    settings = stack.settings(through=stack.pgbouncer)
    async with handler_engine(settings) as warm_engine, warm_engine.connect() as connection:
        assert await connection.scalar(text(f"SHOW {setting}")) == value


async def test_an_invalid_ca_file_is_reported_by_name(stack: Stack) -> None:
    settings = stack.settings(sslmode="verify-full", sslrootcert=__file__)
    with pytest.raises(SettingsError, match=r"^DB_SSLROOTCERT: .*Allowed: the path of a"):
        create_engine(settings)
