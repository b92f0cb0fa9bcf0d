"""After a column's type changes under a warm engine, reads return correct values or fail."""

import asyncio
import contextlib
import os
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from handler.warm.database.connection import connector
from handler.warm.settings import Settings
from infra.database.roles import APP
from infra.local import system_packages
from infra.local.stack import DATABASE, Stack
from tests.conftest import PgConnection
from tests.integration.changed_columns import KINDS, PREPARATION, QUERIES, RECORDS, Kind
from tests.integration.engines import handler_engine

#: `make test` tries a sample; `.ci/run` sets 10,000, which covers each change several times.
READS = int(os.environ.get("READS", "500"))
CHANGES = [(kind, target) for kind in KINDS for target in kind.new_types]

pgbouncer = system_packages.find_pgbouncer()
needs_pgbouncer_1_21 = pytest.mark.skipif(
    pgbouncer is None or pgbouncer.version < (1, 21),
    reason="PgBouncer tracks statements from 1.21 on",
)
#: The numbers are values of PgBouncer's max_prepared_statements.
PATHS = [
    *("direct", "pooled"),
    *(pytest.param(limit, marks=needs_pgbouncer_1_21) for limit in (0, 200)),
]


@pytest.fixture
def admin(own_admin: PgConnection) -> PgConnection:
    return own_admin


@contextmanager
def path_to(stack: Stack, path: str | int) -> Iterator[Settings]:
    if path == "direct":
        yield stack.settings()
        return
    options: dict[str, str | int] = {"default_pool_size": 1, "reserve_pool_size": 0}
    if isinstance(path, int):
        options["max_prepared_statements"] = path
    with stack.another_pgbouncer(settings=options) as bouncer:
        yield stack.settings(through=bouncer)


@asynccontextmanager
async def uncached_engine(stack: Stack) -> AsyncIterator[AsyncEngine]:
    """Create an engine with SQLAlchemy's own dialect, which prepares each read again."""
    caches = {"statement_cache_size": 0, "prepared_statement_cache_size": 0}
    engine = create_async_engine(
        "postgresql+asyncpg://",
        connect_args={**stack.postgres.admin, "database": DATABASE, **caches},
        isolation_level="AUTOCOMMIT",
    )
    try:
        yield engine
    finally:
        await engine.dispose()


@asynccontextmanager
async def warm_connection(stack: Stack) -> AsyncIterator[AsyncConnection]:
    async with handler_engine(stack.settings()) as engine, engine.connect() as connection:
        yield connection


async def read(engine: AsyncEngine, query: str) -> str:
    """Return the rows with their types, or the SQLSTATE or class of the error."""
    try:
        async with engine.connect() as connection:
            rows = await connection.execute(text(query))
            return repr([tuple(map(with_type, row)) for row in rows])
    except (DBAPIError, ValueError, OverflowError) as error:  # the others come from asyncpg
        cause = getattr(error, "orig", error).__cause__ or error
        return f"error: {getattr(cause, 'sqlstate', None) or type(cause).__name__}"


def with_type(value: Any) -> Any:
    return (type(value).__name__, value)


async def create(admin: PgConnection, kind: Kind) -> None:
    await admin.execute(
        f"DROP TABLE IF EXISTS altered; CREATE TABLE altered (id integer, v {kind.name});"
        f"GRANT SELECT, UPDATE ON altered TO {APP}"
    )
    for number, value in enumerate(kind.values, 1):
        await admin.execute(f"INSERT INTO altered VALUES ({number}, '{value}')")


async def alter(admin: PgConnection, target: str) -> None:
    """Change the type, keeping the values it can represent; the others become NULL."""
    change = "ALTER TABLE altered ALTER v TYPE {} USING {}"
    for using in (f"v::{target}", f"v::text::{target}", f"convert_to(v::text, 'UTF8')::{target}"):
        try:
            await admin.execute(change.format(target, using))
        except asyncpg.PostgresError:
            continue
        return
    await admin.execute(change.format(target, f"NULL::{target}"))


async def _extensions(admin: PgConnection) -> set[str]:
    rows = await admin.fetch("SELECT name FROM pg_available_extensions")
    return {row["name"] for row in rows}


@pytest.mark.timeout(900)
@pytest.mark.parametrize("path", PATHS, ids=str)
async def test_a_read_is_correct_or_fails_and_the_next_is_correct(
    own_stack: Stack, admin: PgConnection, path: str | int
) -> None:
    await admin.execute(PREPARATION)
    changes = list(CHANGES)
    if "hstore" in await _extensions(admin):
        await admin.execute("CREATE EXTENSION hstore")
    else:
        changes = [change for change in changes if change[0].name != "hstore"]
    chooser = random.Random(8)
    reads, errors = 0, 0
    with path_to(own_stack, path) as settings:
        async with handler_engine(settings) as warm, uncached_engine(own_stack) as uncached:
            while reads < READS:
                kind, target = chooser.choice(changes)
                await create(admin, kind)
                for query in QUERIES:
                    await read(warm, query)  # its type differs from the warm one
                    if query != RECORDS:
                        assert await read(warm, query) == await read(uncached, query), (kind, query)
                await alter(admin, target)
                # The first error makes SQLAlchemy prepare all statements again.
                for query in chooser.sample(QUERIES, len(QUERIES)):
                    expected, first = await read(uncached, query), await read(warm, query)
                    assert first == expected or first.startswith("error: "), (kind, target, query)
                    errors += first != expected
                    second = await read(warm, query)
                    # asyncpg does not introspect the members of a record, so it may not know them.
                    unknown = query == RECORDS and second == "error: InternalClientError"
                    assert second == expected or unknown, (kind, target, query)
                    reads += 4
    print(f"{path}: {reads} reads, {errors} errors at a change, none wrong")
    assert errors


async def test_reordered_columns_are_read_correctly(own_stack: Stack, admin: PgConnection) -> None:
    """The types are the same in either order, so only the names can tell the columns apart."""
    await admin.execute(
        f"CREATE TABLE altered (price integer, stock integer); GRANT SELECT ON altered TO {APP};"
        "INSERT INTO altered VALUES (100, 5)"
    )
    async with warm_connection(own_stack) as warm:
        query = text("SELECT * FROM altered")
        assert (await warm.execute(query)).one().stock == 5
        await admin.execute(
            "ALTER TABLE altered DROP price; ALTER TABLE altered ADD price integer DEFAULT 100"
        )
        with pytest.raises(DBAPIError, match="cached statement plan is invalid"):
            await warm.execute(query)
        assert (await warm.execute(query)).one().stock == 5


async def test_a_parameter_keeps_the_type_it_was_encoded_with(
    own_stack: Stack, admin: PgConnection
) -> None:
    """Without the type in Parse, the four bytes of an integer would be stored as a real."""
    await admin.execute(
        f"CREATE TABLE altered (v integer); GRANT ALL ON altered TO {APP};"
        "INSERT INTO altered VALUES (1)"
    )
    async with warm_connection(own_stack) as warm:
        update = text("UPDATE altered SET v = :v")
        await warm.execute(update, {"v": 2})
        await admin.execute("ALTER TABLE altered ALTER v TYPE real")
        await warm.execute(update, {"v": 5})
        assert await admin.fetchval("SELECT v FROM altered") == 5
        await admin.execute("ALTER TABLE altered ALTER v TYPE bytea USING ''")
        with pytest.raises(DBAPIError, match="bytea but expression is of type integer"):
            await warm.execute(update, {"v": 6})
        await warm.execute(update, {"v": b"6"})  # prepared again
        assert await admin.fetchval("SELECT v FROM altered") == b"6"


async def test_two_statements_with_the_same_text_are_distinguished(
    own_stack: Stack, admin: PgConnection
) -> None:
    await create(admin, KINDS[1])
    async with contextlib.AsyncExitStack() as undo:
        warm = await connector(own_stack.settings())()
        undo.push_async_callback(warm.close)
        before = await warm.prepare(QUERIES[0])
        await alter(admin, "real")
        after = await warm.prepare(QUERIES[0])
        assert await after.fetchval() == 5
        with pytest.raises(asyncpg.InvalidCachedStatementError):
            await before.fetchval()


async def test_a_recreated_type_fails_one_query(own_stack: Stack, admin: PgConnection) -> None:
    create_type = "CREATE TYPE mood AS ENUM ('sad', 'ok'); CREATE TABLE altered (v mood);"
    await admin.execute(f"{create_type} GRANT ALL ON altered TO {APP}")
    async with warm_connection(own_stack) as warm:
        insert = text("INSERT INTO altered VALUES (:v) RETURNING v")
        assert await warm.scalar(insert, {"v": "ok"}) == "ok"
        await admin.execute(f"DROP TABLE altered; DROP TYPE mood; {create_type}")
        await admin.execute(f"GRANT ALL ON altered TO {APP}")
        with pytest.raises(DBAPIError):
            await warm.scalar(insert, {"v": "ok"})
        assert await warm.scalar(insert, {"v": "ok"}) == "ok"


async def test_all_connections_of_a_pool_read_correctly(
    own_stack: Stack, admin: PgConnection
) -> None:
    await create(admin, KINDS[1])
    async with handler_engine(own_stack.settings(pool_size=4)) as warm:

        async def read_on_all_connections() -> list[str]:
            return await asyncio.gather(*(read(warm, QUERIES[0]) for _ in range(4)))

        await read_on_all_connections()
        assert len(set(await read_on_all_connections())) == 1
        await alter(admin, "real")
        first = await read_on_all_connections()
        assert all("'float', 5.0" in rows or rows.startswith("error") for rows in first), first
        second = await read_on_all_connections()
        assert all("'float', 5.0" in rows for rows in second), second
