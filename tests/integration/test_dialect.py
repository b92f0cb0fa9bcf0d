"""The dialect skips SQLAlchemy's queries on the first connection and has the same results."""

from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from handler.orders import Base
from handler.warm.database.connection import connector
from handler.warm.database.dialect import NAME
from handler.warm.database.engine import create_engine
from infra.database import schema
from infra.database.roles import APP, OWNER
from infra.local.stack import DATABASE, Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import administrator

LEVELS = ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]


def stock_engine(stack: Stack, **options: Any) -> AsyncEngine:
    login = {**stack.postgres.admin, "database": DATABASE}
    return create_async_engine("postgresql+asyncpg://", connect_args=login, **options)


async def test_the_server_version_matches_sqlalchemy(stack: Stack) -> None:
    ours, theirs = create_engine(stack.settings()), stock_engine(stack)
    for engine in (ours, theirs):
        async with engine.connect():
            pass
        await engine.dispose()
    assert ours.dialect.server_version_info == theirs.dialect.server_version_info


def engine_at(stack: Stack, **options: Any) -> AsyncEngine:
    """Create an engine with this dialect and a configurable isolation level."""
    settings = stack.settings()
    return create_async_engine(f"{NAME}://", async_creator=connector(settings), **options)


@pytest.mark.parametrize("level", LEVELS)
async def test_a_connection_resets_to_the_engine_isolation_level(stack: Stack, level: str) -> None:
    engine = engine_at(stack, isolation_level=level, pool_size=1, max_overflow=0)
    other = next(name for name in LEVELS if name != level)
    for requested in (level, other, level, "AUTOCOMMIT", level):
        async with engine.connect() as connection:
            if requested != level:
                await connection.execution_options(isolation_level=requested)
            current = await connection.scalar(text("SHOW transaction_isolation"))
            assert current == ("read committed" if requested == "AUTOCOMMIT" else requested.lower())
    assert engine.dialect.default_isolation_level == level
    await engine.dispose()


async def test_the_role_default_applies_without_an_engine_isolation_level(own_stack: Stack) -> None:
    async with administrator(own_stack) as admin:
        await admin.execute(f"ALTER ROLE {APP} SET default_transaction_isolation = 'serializable'")
    engine = engine_at(own_stack, pool_size=1, max_overflow=0)
    for option in (None, "REPEATABLE READ", None):
        async with engine.connect() as connection:
            if option:
                await connection.execution_options(isolation_level=option)
            current = await connection.scalar(text("SHOW transaction_isolation"))
            assert current == (option or "serializable").lower()
    await engine.dispose()


async def test_the_default_schema_is_that_of_the_connection(own_stack: Stack) -> None:
    async with administrator(own_stack) as admin:
        await admin.execute(
            f"CREATE SCHEMA shop AUTHORIZATION {OWNER}; GRANT USAGE ON SCHEMA shop TO {APP};"
            f"ALTER ROLE {APP} SET search_path = shop, public; CREATE TABLE shop.goods ()"
        )
    engine = create_engine(own_stack.settings())
    assert engine.dialect.default_schema_name is None  # nothing is connected
    async with engine.connect() as connection:
        assert "goods" in await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        assert await connection.run_sync(lambda sync: inspect(sync).default_schema_name) == "shop"
    await engine.dispose()


async def test_the_default_schema_is_only_queried_on_demand(stack: Stack) -> None:
    settings = stack.settings()
    with TcpProxy(settings.host, settings.port) as proxy:
        engine = create_engine(settings.model_copy(update={"port": proxy.port}))
        async with engine.connect() as connection:
            await connection.execute(text("SELECT 1"))
            round_trips = proxy.round_trips
            for expected in (2, 0):  # asyncpg prepares it first
                await connection.run_sync(lambda sync: sync.dialect.default_schema_name)
                assert proxy.round_trips == (round_trips := round_trips + expected)
        await engine.dispose()


@pytest.mark.parametrize("path", ["public", "shop, public", "shop"])
@pytest.mark.parametrize("include_schemas", [False, True])
async def test_the_models_agree_with_the_database_in_any_schema(
    own_stack: Stack, path: str, include_schemas: bool
) -> None:
    async with administrator(own_stack) as admin:
        await admin.execute(
            f"CREATE SCHEMA shop AUTHORIZATION {OWNER}; ALTER ROLE {OWNER} SET search_path = {path}"
        )
        if path.startswith("shop"):
            for table in ("orders", "order_requests", "alembic_version"):
                await admin.execute(f"ALTER TABLE {table} SET SCHEMA shop")
            if path == "shop":
                await admin.execute("ALTER SEQUENCE IF EXISTS orders_id_seq SET SCHEMA shop")

    def differences(connection: Connection) -> list[object]:
        options = {"include_schemas": include_schemas, "include_name": _of_the_models}
        context = MigrationContext.configure(connection, opts=options)
        return list(compare_metadata(context, Base.metadata))

    settings = own_stack.settings(user=OWNER)
    owner = create_engine(settings)
    async with owner.connect() as connection:
        assert await connection.run_sync(differences) == []
    await owner.dispose()
    await schema.migrate(settings, command.check)  # raises if autogenerate finds a difference


def _of_the_models(name: str | None, kind: str, _: Any) -> bool:
    """Exclude Alembic's table and the schema of the password lookup."""
    return name not in ("alembic_version", "pooler")
