"""The roles, their settings and privileges, and the password lookup of PgBouncer.

The administrator needs CREATEROLE and CREATEDB, and need not be a superuser, since a managed
Postgres provides none. The migrations create the tables, as the owner role. Why PgBouncer looks
passwords up: docs/decisions/auth-query.md.
"""

from __future__ import annotations

import contextlib
from typing import Any

import asyncpg

from infra.database import scram

OWNER = "storefront_owner"
APP = "appuser"
LOOKUP = "pooler_lookup"

#: Set on the role, because PgBouncer rejects most startup parameters (`unsupported startup
#: parameter`) or, with `ignore_startup_parameters`, silently ignores them.
OWNER_SETTINGS = {
    # While a migration waits for a lock, all later reads wait too. It fails and can be repeated.
    "lock_timeout": "2s",
}
APP_SETTINGS = {
    # The only guaranteed end of a query: asyncpg's cancel request uses another connection, which
    # may reach another PgBouncer or be refused. It must be below the function's timeout.
    "statement_timeout": "5s",
    # A sandbox that is frozen inside a transaction holds its server connection and locks.
    "idle_in_transaction_session_timeout": "5s",
    # The engine logs in with this name. PgBouncer's reset after each transaction restores this
    # value; if it differed, PgBouncer would set it again before each query (one round trip).
    "application_name": "warm-engine",
    # Compiling a query takes longer than a read by primary key.
    "jit": "off",
}

LOOKUP_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS pooler;
REVOKE ALL ON SCHEMA pooler FROM PUBLIC;
-- Its own table of SCRAM verifiers, because no role may read pg_authid on a managed Postgres.
CREATE TABLE IF NOT EXISTS pooler.verifiers (role name PRIMARY KEY, verifier text NOT NULL);
REVOKE ALL ON pooler.verifiers FROM PUBLIC;
-- SECURITY DEFINER: the lookup role can query one role at a time but not read the table. As in
-- Postgres, a role that may not log in (NOLOGIN, VALID UNTIL) has no verifier.
CREATE OR REPLACE FUNCTION pooler.lookup(requested text, OUT role name, OUT verifier text)
  RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
  AS 'SELECT v.role, v.verifier FROM pooler.verifiers v JOIN pg_roles r ON r.rolname = v.role
      WHERE v.role = requested AND r.rolcanlogin
      AND (r.rolvaliduntil IS NULL OR r.rolvaliduntil > now())';
REVOKE ALL ON FUNCTION pooler.lookup(text) FROM PUBLIC;
"""

#: Databases of every Postgres to which PUBLIC may connect, and where APP_SETTINGS do not apply.
OTHER_DATABASES = ("postgres", "template1")
#: Connections left free: two for the lookup, one for a migration, one for an operator.
OTHERS = 4
LARGE_OBJECTS = """
SELECT string_agg(oid::regprocedure::text, ', ') FROM pg_proc
WHERE pronamespace = 'pg_catalog'::regnamespace
AND (proname LIKE 'lo\\_%' OR proname IN ('loread', 'lowrite'))
"""
#: The settings of a role by database; NULL stands for all databases.
ROLE_SETTINGS = """
SELECT datname, setconfig FROM pg_db_role_setting JOIN pg_roles ON pg_roles.oid = setrole
LEFT JOIN pg_database ON pg_database.oid = setdatabase WHERE rolname = $1
"""


class ForeignRoleError(Exception):
    """A role with that name exists and was not created for this database."""


async def bootstrap(admin: dict[str, Any], database: str, passwords: dict[str, str]) -> None:
    """Create or repair the roles, the database and the lookup. It can be repeated.

    `admin` are asyncpg's arguments for the administrator, without a database. `passwords` has the
    passwords of OWNER, APP and LOOKUP by role. Raises errors of asyncpg and the network, and
    ForeignRoleError for a role that was not created for this database: roles belong to the server,
    and a new password would lock out the pooler of another database.
    """
    connection = await asyncpg.connect(**admin, database="postgres")
    try:
        await _create_roles(connection, database)
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            # On a managed Postgres the owner must be a role that the administrator is a member of.
            await connection.execute(f"GRANT {OWNER} TO CURRENT_USER")
            await connection.execute(f"CREATE DATABASE {identifier(database)} OWNER {OWNER}")
        async with connection.transaction():
            await _set_roles(connection, database)
        for other in OTHER_DATABASES:
            # On a managed Postgres another role may own them; `check` reports that.
            with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
                await connection.execute(
                    f"GRANT CONNECT ON DATABASE {other} TO CURRENT_USER;"
                    f"REVOKE ALL ON DATABASE {other} FROM PUBLIC"
                )
    finally:
        await connection.close()

    connection = await asyncpg.connect(**admin, database=database)
    try:
        quoted = identifier(database)
        await connection.execute(f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC")
        await connection.execute(f"GRANT CONNECT ON DATABASE {quoted} TO {APP}, {LOOKUP}")
        # By default every role may create large objects; only a superuser can revoke that.
        with contextlib.suppress(asyncpg.InsufficientPrivilegeError):
            functions = await connection.fetchval(LARGE_OBJECTS)
            await connection.execute(f"REVOKE EXECUTE ON FUNCTION {functions} FROM PUBLIC")
        await connection.execute(LOOKUP_SCHEMA)
        await connection.execute(f"GRANT USAGE ON SCHEMA pooler TO {LOOKUP}")
        await connection.execute(f"GRANT EXECUTE ON FUNCTION pooler.lookup(text) TO {LOOKUP}")
        for role, password in passwords.items():
            await set_password(connection, role, password, through_pooler=role == APP)
    finally:
        await connection.close()


async def _create_roles(connection: asyncpg.Connection[Any], database: str) -> None:
    """Create missing roles with a comment that names the database. Raises ForeignRoleError."""
    comment = f"warm-engine: {database}"
    for role in (OWNER, APP, LOOKUP):
        row = await connection.fetchrow(
            "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1", role
        )
        if row is None:
            async with connection.transaction():
                await connection.execute(f"CREATE ROLE {role} LOGIN")
                await connection.execute(f"COMMENT ON ROLE {role} IS {literal(comment)}")
        elif row[0] != comment:
            raise ForeignRoleError(
                f"the role {role} already exists, and not for the database {database}. Use a"
                " separate Postgres; or, if nothing else logs in as this role and its password"
                f" may change: COMMENT ON ROLE {role} IS {literal(comment)}"
            )


async def _set_roles(connection: asyncpg.Connection[Any], database: str) -> None:
    """Reset the settings that a role may have changed itself, then apply those of this module."""
    for role in (OWNER, APP, LOOKUP):
        for name, _ in await connection.fetch(ROLE_SETTINGS, role):
            scope = "" if name is None else f" IN DATABASE {identifier(name)}"
            await connection.execute(f"ALTER ROLE {role}{scope} RESET ALL")
    for role, settings in ((OWNER, OWNER_SETTINGS), (APP, APP_SETTINGS)):
        for setting, value in settings.items():
            await connection.execute(
                f"ALTER ROLE {role} IN DATABASE {identifier(database)} SET {setting} = '{value}'"
            )
    # Without a limit the application could use up the connections of migrations and operators.
    limit = await connection_limit(connection)
    await connection.execute(f"ALTER ROLE {APP} CONNECTION LIMIT {limit}")


async def connection_limit(connection: asyncpg.Connection[Any]) -> int:
    """Return the application's limit: all connections less the server's reserve and OTHERS."""
    available: int = await connection.fetchval(
        "SELECT current_setting('max_connections')::int"
        " - current_setting('superuser_reserved_connections')::int"
        " - coalesce(current_setting('reserved_connections', true)::int, 0)"  # since 16
    )
    return max(available - OTHERS, 1)


def identifier(name: str) -> str:
    """Quote `name` as an SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote `text` as an SQL string, where parameters are not possible."""
    return "'" + text.replace("'", "''") + "'"


async def set_password(
    connection: asyncpg.Connection[Any], role: str, password: str, *, through_pooler: bool = True
) -> None:
    """Set the password of `role` in Postgres and in the lookup, in one transaction.

    Only the SCRAM verifier is sent, so the password is in no log and not in `pg_stat_activity`.
    `connection` must be the administrator's, to the database with the lookup.
    """
    verifier = scram.verifier_of(password)
    stored = await connection.fetchval(
        "SELECT verifier FROM pooler.verifiers WHERE role = $1", role
    )
    # Keep the salt of an unchanged password: PgBouncer opens server connections with the keys of
    # earlier logins.
    if stored and stored == scram.verifier_of(password, scram.salt_of(stored)):
        verifier = stored
    async with connection.transaction():
        await connection.execute(f"ALTER ROLE {role} PASSWORD '{verifier}'")
        if through_pooler:
            await connection.execute(
                "INSERT INTO pooler.verifiers VALUES ($1, $2)"
                " ON CONFLICT (role) DO UPDATE SET verifier = excluded.verifier",
                role,
                verifier,
            )
