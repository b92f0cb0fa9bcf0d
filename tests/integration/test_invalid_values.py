"""An invalid value is not quoted in the error, and the next query works."""

from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine

from handler.warm import request_policy
from handler.warm.database.engine import create_engine
from infra.database.roles import APP
from infra.local.stack import Stack
from tests.integration.engines import handler_engine

SECRET = "tiger"
TYPES = [
    *("int2", "int4", "int8", "float4", "float8", "numeric(4,1)", "bool", "varchar(3)", "bytea"),
    *("date", "time", "timetz", "timestamp", "timestamptz", "interval", "uuid", "json", "jsonb"),
    *("int4[]", "text[]", "int4range", "tstzrange", "inet", "cidr", "macaddr", "bit(8)", "oid"),
]
VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [
            *(2**15, 2**31, 2**63, -(2**63) - 1, 10**400, Decimal("99999.9"), Decimal("NaN")),
            *(f"{SECRET}", f"{SECRET}\0", f"{SECRET}\ud800", SECRET * 100_000, SECRET.encode()),
            *([SECRET], [[1], [2, 3]], {SECRET: SECRET}, object(), float("inf"), b"\xff", (), ""),
        ]
    ),
    st.integers(),
    st.text(max_size=20).map(lambda value: SECRET + value),
)


async def error_of(engine: AsyncEngine, type_name: str, value: Any) -> Exception | None:
    """Send the value and return the error, or None."""
    try:
        async with engine.connect() as connection:
            await connection.execute(text(f"SELECT CAST(:v AS {type_name})"), {"v": value})
    except Exception as error:  # whatever the driver raises
        return error
    return None


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(type_name=st.sampled_from(TYPES), value=VALUES)
async def test_a_bad_value_is_not_quoted_and_the_next_query_works(
    stack: Stack, type_name: str, value: Any
) -> None:
    bouncer = stack.pgbouncer
    async with handler_engine(stack.settings(through=bouncer, pool_size=1)) as engine:
        for _ in range(2):  # the second statement is already prepared
            error = await error_of(engine, type_name, value)
            if error is not None:
                failure = request_policy.classify(error)
                assert (failure.status, failure.retryable) == (500, False), failure
                assert SECRET not in failure.cause + failure.hint
                states = {row["state"] for row in bouncer.show("SERVERS") if row["user"] == APP}
                assert "active" not in states, error
            async with engine.connect() as connection:
                assert await connection.scalar(text("SELECT 1")) == 1


async def test_a_value_that_cannot_be_sent_leaves_other_connections_open(stack: Stack) -> None:
    engine = create_engine(stack.settings(pool_size=3), isolation_level="AUTOCOMMIT")
    connections = [await engine.connect() for _ in range(3)]
    before = {
        await connection.scalar(text("SELECT pg_backend_pid()")) for connection in connections
    }
    with pytest.raises(Exception, match="value out of int32 range"):
        await connections[0].execute(text("SELECT CAST(:v AS int4)"), {"v": 2**31})
    for connection in connections:
        await connection.rollback()
        await connection.close()
    connections = [await engine.connect() for _ in range(3)]
    assert {
        await connection.scalar(text("SELECT pg_backend_pid()")) for connection in connections
    } == before
    for connection in connections:
        await connection.close()
    await engine.dispose()
