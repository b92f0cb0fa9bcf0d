"""Someone who knows a role's password cannot exceed its rights; changed settings are reported."""

from typing import Any

import asyncpg
import pytest

from handler.warm.database.connection import connector
from infra.database import check, roles
from infra.local.stack import DATABASE, Stack
from tests.conftest import PgConnection, administrator, wait_for_transports_closed
from tests.integration.role_logins import assert_forbidden, connect, through_pooler

#: PgBouncer's message for a login without a verifier.
LOGIN_REJECTED = r"authentication failed|no such user"


async def differences(stack: Stack) -> list[str]:
    return await check.differences(stack.postgres.admin, DATABASE)


async def bootstrap_again(stack: Stack) -> None:
    names = (roles.OWNER, roles.APP, roles.LOOKUP)
    passwords = {role: stack.settings(user=role).password.get_secret_value() for role in names}
    await roles.bootstrap(stack.postgres.admin, DATABASE, passwords)


async def connect_with_asyncpg(stack: Stack, **options: Any) -> PgConnection:
    password = stack.settings().password.get_secret_value()
    login = {**stack.postgres.admin, "user": roles.APP, "password": password, "database": DATABASE}
    connection: PgConnection = await asyncpg.connect(**{**login, **options})
    return connection


# --- Role settings -------------------------------------------------------------------------------


async def test_the_roles_of_a_new_stack_match_their_definition(stack: Stack) -> None:
    assert await differences(stack) == []


@pytest.mark.parametrize(
    ("statement", "difference"),
    [
        ("ALTER ROLE appuser SET default_transaction_read_only = on", "read_only is on in every"),
        (
            "ALTER ROLE appuser IN DATABASE storefront SET statement_timeout = 0",
            "statement_timeout is 0 in storefront, expected 5s",
        ),
        ("ALTER ROLE appuser IN DATABASE storefront RESET ALL", "jit is None in storefront"),
        ("ALTER ROLE appuser PASSWORD 'mine'", "its password is not the one in the pooler"),
    ],
)
async def test_changed_role_settings_are_reported_and_reset_by_the_next_migration(
    own_stack: Stack, statement: str, difference: str
) -> None:
    connection = await connect(own_stack, roles.APP)
    await connection.execute(statement)
    await connection.close()
    assert difference in "\n".join(await differences(own_stack))
    await bootstrap_again(own_stack)
    assert await differences(own_stack) == []
    connection = await connect(own_stack, roles.APP)
    assert await connection.fetchval("SHOW default_transaction_read_only") == "off"
    assert await connection.fetchval("SHOW statement_timeout") == "5s"
    await connection.close()


# --- Rights --------------------------------------------------------------------------------------


@pytest.mark.parametrize("database", roles.OTHER_DATABASES)
@pytest.mark.parametrize("role", [roles.APP, roles.LOOKUP, roles.OWNER])
async def test_roles_connect_only_to_the_database_their_settings_apply_to(
    stack: Stack, role: str, database: str
) -> None:
    password = stack.settings(user=role).password.get_secret_value()
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connect_with_asyncpg(stack, user=role, password=password, database=database)
    await wait_for_transports_closed()


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT lo_create(0)",
        "SELECT lo_from_bytea(0, 'x')",
        "SELECT lo_creat(-1)",
        "SELECT lo_put(1, 0, 'x')",
        "SELECT lo_open(1, 131072)",
        "ALTER ROLE appuser CONNECTION LIMIT -1",
        "ALTER ROLE appuser CREATEDB",
        "ALTER ROLE appuser VALID UNTIL 'infinity'",
        "GRANT storefront_owner TO appuser",
        "ALTER DATABASE storefront SET statement_timeout = 0",
        "CREATE FUNCTION public.f() RETURNS int LANGUAGE sql AS 'SELECT 1'",
        "ALTER SYSTEM SET statement_timeout = 0",
    ],
)
async def test_the_application_role_cannot_extend_its_rights_or_limits(
    stack: Stack, statement: str
) -> None:
    await assert_forbidden(stack, roles.APP, statement)


async def test_the_application_cannot_use_every_connection(own_stack: Stack) -> None:
    """The owner and an administrator can still connect when the application is at its limit."""
    connections: list[PgConnection] = []

    async def use_all_connections() -> None:
        while True:
            connections.append(await connect_with_asyncpg(own_stack))

    with pytest.raises(asyncpg.TooManyConnectionsError):
        await use_all_connections()
    owner_connections = [await connect(own_stack, roles.OWNER) for _ in range(roles.OTHERS)]
    async with administrator(own_stack) as admin:
        assert len(connections) == await roles.connection_limit(admin)
    for connection in [*connections, *owner_connections]:
        await connection.close()
    await wait_for_transports_closed()


# --- Revoked logins ------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["NOLOGIN", "VALID UNTIL 'yesterday'"])
async def test_a_role_that_may_not_log_in_cannot_connect_through_the_pooler(
    own_stack: Stack, change: str
) -> None:
    password = own_stack.settings().password.get_secret_value()
    assert await through_pooler(own_stack, password) == roles.APP
    async with administrator(own_stack) as admin:
        await admin.execute(f"ALTER ROLE {roles.APP} {change}")
        with pytest.raises(asyncpg.PostgresError, match=LOGIN_REJECTED):
            await through_pooler(own_stack, password)
        await admin.execute(f"ALTER ROLE {roles.APP} LOGIN VALID UNTIL 'infinity'")
    assert await through_pooler(own_stack, password) == roles.APP
    await wait_for_transports_closed()


async def test_kill_and_resume_on_the_console_disconnect_clients(own_stack: Stack) -> None:
    settings = own_stack.settings(through=own_stack.pgbouncer)
    connection = await connector(settings)()
    async with administrator(own_stack) as admin:
        await admin.execute(f"ALTER ROLE {roles.APP} NOLOGIN")
    assert await connection.fetchval("SELECT 1") == 1  # Postgres does not end existing sessions
    with own_stack.pgbouncer.console() as console:
        console.execute(f"KILL {DATABASE}")
        console.execute(f"RESUME {DATABASE}")
    with pytest.raises((asyncpg.PostgresError, OSError, asyncpg.InterfaceError)):
        await connection.fetchval("SELECT 1")
    with pytest.raises(asyncpg.PostgresError, match=LOGIN_REJECTED):
        await connector(settings)()
    await wait_for_transports_closed()


# --- Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ['a"; CREATE ROLE mallory; --', "a'; CREATE ROLE mallory; --", "a\nb = host=x"]
)
async def test_a_database_name_cannot_inject_sql(own_stack: Stack, name: str) -> None:
    passwords = dict.fromkeys((roles.OWNER, roles.APP, roles.LOOKUP), "p")
    async with administrator(own_stack) as admin:
        for role in passwords:
            comment = roles.literal(f"warm-engine: {name}")
            await admin.execute(f"COMMENT ON ROLE {role} IS {comment}")
        await roles.bootstrap(own_stack.postgres.admin, name, passwords)
        assert await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", name)
        assert not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = 'mallory'")
    assert await check.differences(own_stack.postgres.admin, name) == []
