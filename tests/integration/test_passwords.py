"""The application can log in with any password, but not with a different one."""

import asyncpg
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from handler.warm.database.connection import connector
from infra.database import roles
from infra.local.stack import Stack
from tests.conftest import administrator, wait_for_transports_closed

ANY_PASSWORD = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ANY_PASSWORD)
@example("p@ss/w:rd#%'\"\\ ")
@example("\N{SOFT HYPHEN}")  # SASLprep removes it
@example("\N{BELL}\t")  # SASLprep forbids it
@example("\N{ROMAN NUMERAL NINE}\N{NO-BREAK SPACE}ª")  # SASLprep replaces them
@example("\N{SQUARED LATIN CAPITAL LETTER A}\N{GRINNING FACE}")  # newer than its tables
@example("\N{HEBREW LETTER ALEF}a")  # SASLprep forbids the mixture
async def test_a_password_with_any_characters_works(own_stack: Stack, password: str) -> None:
    async with administrator(own_stack) as admin:
        await roles.set_password(admin, roles.APP, password)
    for pgbouncer in (None, own_stack.pgbouncer):
        connection = await connector(own_stack.settings(through=pgbouncer, password=password))()
        assert await connection.fetchval("SELECT current_user") == roles.APP
        await connection.close()
        with pytest.raises(asyncpg.PostgresError):
            await connector(own_stack.settings(through=pgbouncer, password=f"{password}x"))()
        await wait_for_transports_closed()
