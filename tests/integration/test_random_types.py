"""Any expression over any type has the same result as with SQLAlchemy's stock dialect."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Boolean,
    Column,
    Date,
    DateTime,
    Double,
    Enum,
    Integer,
    Interval,
    LargeBinary,
    MetaData,
    Numeric,
    Row,
    SmallInteger,
    String,
    Table,
    Text,
    Time,
    Uuid,
    case,
    except_,
    func,
    insert,
    intersect,
    literal,
    select,
    true,
    union,
    union_all,
    update,
)
from sqlalchemy.dialects.postgresql import INET, INT4RANGE, JSONB, REAL, Range
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from handler.warm.database.engine import create_engine
from infra.database.roles import OWNER
from infra.local.stack import Stack

metadata = MetaData()
NUMBERS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "small": (SmallInteger, st.integers(-(2**15), 2**15 - 1)),
    "whole": (Integer, st.integers(-(2**31), 2**31 - 1)),
    "big": (BigInteger, st.integers(-(2**63), 2**63 - 1)),
    "exact": (Numeric(12, 2), st.decimals(-(10**9), 10**9, places=2)),
    "double": (Double, st.floats(allow_nan=False)),
    "single": (REAL, st.floats(width=32, allow_nan=False)),
}
WORDS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=9)
TIMES = st.times()
MOMENTS = st.datetimes(datetime(1, 1, 2), datetime(9999, 12, 30))
OTHERS: dict[str, tuple[Any, st.SearchStrategy[Any]]] = {
    "flag": (Boolean, st.booleans()),
    "word": (String(9), WORDS),
    "long": (Text, WORDS),
    "raw": (LargeBinary, st.binary(max_size=9)),
    "day": (Date, st.dates(date(1, 1, 2), date(9999, 12, 30))),
    "hour": (Time, TIMES),
    "moment": (DateTime, MOMENTS),
    "instant": (DateTime(timezone=True), MOMENTS.map(lambda value: value.replace(tzinfo=UTC))),
    "span": (Interval, st.timedeltas(timedelta(-9999), timedelta(9999))),
    "key": (Uuid, st.uuids()),
    "old": (JSON, st.recursive(st.none() | st.integers() | WORDS, st.lists)),
    "document": (JSONB, st.dictionaries(WORDS, st.integers() | WORDS, max_size=2)),
    "mood": (Enum("sad", "ok", name="any_mood", metadata=metadata), st.sampled_from(["sad", "ok"])),
    "list": (ARRAY(Integer), st.lists(st.integers(-9, 9) | st.none(), max_size=3)),
    "words": (ARRAY(Text), st.lists(WORDS, max_size=3)),
    "range": (INT4RANGE, st.builds(Range, st.integers(-9, 0), st.integers(1, 9))),
    "address": (INET, st.ip_addresses(v=4)),
}
COLUMNS = NUMBERS | OTHERS
table = Table(
    "anything",
    metadata,
    Column("id", Integer, primary_key=True),
    *(Column(name, kind) for name, (kind, _) in COLUMNS.items()),
)
EXAMPLE_ROW: dict[str, Any] = {
    "small": 5, "whole": 5, "big": 5, "exact": Decimal("10.00"), "double": 0.1, "single": 0.5,
    "flag": True, "word": "5", "long": "x", "raw": b"\0", "day": date(2024, 1, 2),
    "hour": time(1, 2), "moment": datetime(2024, 1, 2), "instant": datetime(2024, 1, 2, tzinfo=UTC),
    "span": timedelta(1), "key": uuid.UUID(int=5), "old": {"a": None}, "document": {"a": 1},
    "mood": "ok", "list": [1, None], "words": ["a"], "range": Range(1, 5), "address": "10.0.0.1",
}  # fmt: skip


@pytest.fixture(scope="module")
def engines(stack: Stack) -> Iterator[tuple[asyncio.Runner, AsyncEngine, AsyncEngine]]:
    owner = stack.settings(user=OWNER)
    login = {
        "host": owner.host,
        "port": owner.port,
        "user": owner.user,
        "password": owner.password.get_secret_value(),
        "database": owner.name,
    }
    ours = create_engine(owner, isolation_level="AUTOCOMMIT")
    stock = create_async_engine("postgresql+asyncpg://", connect_args=login)

    async def prepare() -> None:
        async with stock.begin() as connection:
            await connection.run_sync(metadata.create_all)
            await connection.execute(
                insert(table), [{"id": 1, **EXAMPLE_ROW}, {"id": 2, **EXAMPLE_ROW}]
            )
            await connection.execute(insert(table).values(id=3))

    async def clean_up() -> None:
        async with stock.begin() as connection:
            await connection.run_sync(metadata.drop_all)
        await ours.dispose()
        await stock.dispose()

    with asyncio.Runner() as runner:
        runner.run(prepare())
        yield runner, ours, stock
        runner.run(clean_up())


@asynccontextmanager
async def rolled_back(engine: AsyncEngine) -> AsyncIterator[Any]:
    """Open a connection whose changes are rolled back when the block ends."""
    async with engine.connect() as autocommit_connection:
        connection = await autocommit_connection.execution_options(isolation_level="READ COMMITTED")
        try:
            yield connection
        finally:
            await connection.rollback()


async def outcome(engine: AsyncEngine, *statements: Any) -> list[str]:
    """Return the rows with their types, or ["error"]."""
    rows: list[Row[Any]] = []
    try:
        async with rolled_back(engine) as connection:
            for statement in statements:
                result = await connection.execute(statement)
                rows += result.all() if result.returns_rows else []
    except (SQLAlchemyError, asyncpg.InterfaceError, OverflowError, ValueError):
        return ["error"]
    return [repr([(type(value).__name__, value) for value in row]) for row in rows]


def compare(engines: tuple[asyncio.Runner, AsyncEngine, AsyncEngine], *statements: Any) -> None:
    """Assert that the statements have the same outcome with both engines."""
    runner, ours, stock = engines
    expected = runner.run(outcome(stock, *statements))
    event("an error" if expected == ["error"] else "rows")
    for _ in range(2):  # the second time, the statements are already prepared
        assert runner.run(outcome(ours, *statements)) == expected, list(map(str, statements))


def any_value(name: str) -> st.SearchStrategy[Any]:
    return st.none() | COLUMNS[name][1]


numbers: st.SearchStrategy[Any] = st.deferred(lambda: numeric_leaf | numeric_branch)
numeric_leaf: st.SearchStrategy[Any] = st.sampled_from(
    [table.c[name] for name in NUMBERS]
) | st.one_of(st.integers(-9, 9), st.decimals(-9, 9, places=2), st.floats(-9, 9)).map(literal)
numeric_branch: st.SearchStrategy[Any] = st.one_of(
    st.builds(lambda a, b: a + b, numbers, numbers),
    st.builds(lambda a, b: a - b, numbers, numbers),
    st.builds(lambda a, b: a * b, numbers, numbers),
    st.builds(lambda a, b: a / b, numbers, numbers),
    st.builds(lambda a, b: func.coalesce(a, b), numbers, numbers),
    st.builds(
        lambda c, a, b: case((c, a), else_=b),
        st.deferred(lambda: conditions),
        numbers,
        numbers,
    ),
)
columns = st.sampled_from([table.c[name] for name in COLUMNS])
column_value_pairs = st.sampled_from(sorted(COLUMNS)).flatmap(
    lambda name: any_value(name).map(lambda value: (table.c[name], value))
)
conditions: st.SearchStrategy[Any] = st.one_of(
    st.builds(lambda a, b: a < b, numeric_leaf, numeric_leaf),
    st.builds(lambda a, b: a == b, numeric_leaf, numeric_leaf),
    st.builds(lambda pair: pair[0] == pair[1], column_value_pairs),
    st.builds(lambda pair: pair[0].in_([pair[1]]), column_value_pairs),
    st.builds(lambda pair: pair[0].is_distinct_from(pair[1]), column_value_pairs),
    columns.map(lambda column: column.is_(None)),
    st.just(table.c.flag.is_(True)),
    st.just(table.c.document.has_key("a")),
    st.just(table.c.range.contains(3)),
)
expressions = st.one_of(
    numbers,
    columns,
    conditions,
    st.builds(lambda span: table.c.instant + span, st.timedeltas(timedelta(-9), timedelta(9))),
    st.sampled_from(["sum", "avg", "min", "max", "array_agg", "count", "stddev"]).flatmap(
        lambda name: columns.map(lambda column: getattr(func, name)(column).over())
    ),
    st.sampled_from(
        [
            func.percentile_cont(0.5).within_group(table.c.whole).over(),
            func.to_jsonb(table.c.exact),
            func.round(table.c.exact * literal(1.5), 1),
            func.length(table.c.long + "x"),
            table.c.document["a"].as_integer(),
            func.array_append(table.c.list, 7),
            table.c.day - date(2024, 1, 1),
            func.age(table.c.moment),
        ]
    ),
)
with_fixtures = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


@with_fixtures
@given(expression=expressions, condition=conditions, distinct=st.booleans())
def test_any_expression_evaluates_as_in_the_stock_dialect(
    engines: Any, expression: Any, condition: Any, distinct: bool
) -> None:
    query = select(expression.label("e")).select_from(table).where(condition | true())
    compare(engines, query.distinct().order_by("e") if distinct else query.order_by(table.c.id))
    compare(engines, select(table.c.id).where(condition).order_by(table.c.id))


@with_fixtures
@given(name=st.sampled_from(["sum", "avg", "min", "max", "array_agg"]), group=columns, of=columns)
def test_any_aggregate_evaluates_as_in_the_stock_dialect(
    engines: Any, name: str, group: Any, of: Any
) -> None:
    compare(engines, select(getattr(func, name)(of), func.count(), group).group_by(group))


@with_fixtures
@given(pair=column_value_pairs)
def test_any_value_is_stored_and_returned_as_in_the_stock_dialect(engines: Any, pair: Any) -> None:
    column, value = pair
    compare(
        engines,
        insert(table).values({"id": 4, column.name: value}).returning(column),
        update(table).values({column: value}).where(table.c.id == 4).returning(*table.c),
        select(table).order_by(table.c.id),
    )


@with_fixtures
@given(name=st.sampled_from(sorted(NUMBERS)), number=numbers)
def test_any_update_computes_as_in_the_stock_dialect(engines: Any, name: str, number: Any) -> None:
    change = update(table).values({name: number}).where(table.c.id < 3)
    compare(engines, change.returning(table.c[name]), select(table.c[name]).order_by(table.c.id))


@with_fixtures
@given(
    combine=st.sampled_from([union, union_all, except_, intersect]),
    left=numbers,
    right=numbers,
)
def test_any_set_operation_evaluates_as_in_the_stock_dialect(
    engines: Any, combine: Any, left: Any, right: Any
) -> None:
    combined = combine(
        select(left.label("e")).select_from(table), select(right.label("e")).select_from(table)
    ).cte()
    compare(engines, select(combined.c.e).order_by(combined.c.e))
