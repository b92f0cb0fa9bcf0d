"""Compares the roles' settings and privileges with those that `roles.bootstrap` sets.

Postgres lets a role change its own settings and password. `bootstrap` resets them, and this module
reports them. It also reports privileges of PUBLIC that only a superuser can revoke, which a managed
Postgres does not provide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import asyncpg

from infra.database import roles

ATTRIBUTES = """
SELECT array_remove(ARRAY[
  CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreaterole THEN 'CREATEROLE' END,
  CASE WHEN rolcreatedb THEN 'CREATEDB' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
  CASE WHEN rolbypassrls THEN 'BYPASSRLS' END], NULL) FROM pg_roles WHERE rolname = $1
"""
MEMBERSHIPS = """
SELECT granted.rolname FROM pg_auth_members JOIN pg_roles granted ON granted.oid = roleid
JOIN pg_roles holder ON holder.oid = member WHERE holder.rolname = $1
"""
PASSWORDS = """
SELECT rolpassword IS NOT DISTINCT FROM verifier FROM pg_authid, pooler.verifiers
WHERE rolname = $1 AND role = $1
"""


async def differences(admin: dict[str, Any], database: str) -> list[str]:
    """Return one line for each difference. `admin` is as in `roles.bootstrap`."""
    connection = await asyncpg.connect(**admin, database=database)
    try:
        return [line async for line in _differences(connection, database)]
    finally:
        await connection.close()


async def _differences(connection: asyncpg.Connection[Any], database: str) -> AsyncIterator[str]:
    expected = {roles.OWNER: roles.OWNER_SETTINGS, roles.APP: roles.APP_SETTINGS, roles.LOOKUP: {}}
    for role, settings in expected.items():
        async for line in _changed_settings(connection, role, database, settings):
            yield line
        for attribute in await connection.fetchval(ATTRIBUTES, role):
            yield f"{role}: has the attribute {attribute}"
        for (granted,) in await connection.fetch(MEMBERSHIPS, role):
            yield f"{role}: is a member of {granted}"
    limit = await connection.fetchval(
        "SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", roles.APP
    )
    if limit != (expected_limit := await roles.connection_limit(connection)):
        yield f"{roles.APP}: its connection limit is {limit}, expected {expected_limit}"
    for other in roles.OTHER_DATABASES:
        may_connect = "SELECT has_database_privilege($1, $2, 'CONNECT')"
        if await connection.fetchval(may_connect, roles.APP, other):
            yield f"{roles.APP}: may connect to {other}, where its settings do not apply"
    if await connection.fetchval(
        "SELECT has_function_privilege($1, 'lo_create(oid)', 'EXECUTE')", roles.APP
    ):
        yield f"{roles.APP}: may create large objects"
    is_readable = await connection.fetchval("SELECT has_table_privilege('pg_authid', 'SELECT')")
    if is_readable and not await connection.fetchval(PASSWORDS, roles.APP):
        yield f"{roles.APP}: its password is not the one in the pooler's lookup table"


async def _changed_settings(
    connection: asyncpg.Connection[Any], role: str, database: str, settings: dict[str, str]
) -> AsyncIterator[str]:
    """Compare the settings of `role` with `settings`, which it should have only in `database`."""
    # The database is None for a setting in all databases.
    current: dict[tuple[str | None, str], str] = {}
    for place, assignments in await connection.fetch(roles.ROLE_SETTINGS, role):
        for assignment in assignments:
            name, _, value = assignment.partition("=")
            current[place, name] = value
    expected: dict[tuple[str | None, str], str] = {
        (database, name): value for name, value in settings.items()
    }
    for key in sorted(current.keys() | expected.keys(), key=str):
        if current.get(key) != expected.get(key):
            place, name = key
            yield (
                f"{role}: {name} is {current.get(key)} in {place or 'every database'}, "
                f"expected {expected.get(key)}"
            )
