"""Compares the roles' settings and privileges with those that `roles.bootstrap` sets.

A role may change its own settings and password, which Postgres cannot forbid: `bootstrap` resets
them, and this module reports them. It also reports privileges of PUBLIC that only a superuser can
revoke, as on a managed Postgres.
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
    """Return each difference as a line. `admin` is the argument of `roles.bootstrap`."""
    connection = await asyncpg.connect(**admin, database=database)
    try:
        return [line async for line in _differences(connection, database)]
    finally:
        await connection.close()


async def _differences(connection: asyncpg.Connection[Any], database: str) -> AsyncIterator[str]:
    wanted = {roles.OWNER: roles.OWNER_SETTINGS, roles.APP: roles.APP_SETTINGS, roles.LOOKUP: {}}
    for role, settings in wanted.items():
        found = {
            (name, setting.partition("=")[0]): setting.partition("=")[2]
            for name, each in await connection.fetch(roles.ROLE_SETTINGS, role)
            for setting in each
        }
        installed = {(database, setting): value for setting, value in settings.items()}
        for where, setting in sorted(found.keys() | installed.keys(), key=str):
            now, then = found.get((where, setting)), installed.get((where, setting))
            if now != then:
                place = "every database" if where is None else where
                yield f"{role}: {setting} is {now} in {place}, expected {then}"
        for attribute in await connection.fetchval(ATTRIBUTES, role):
            yield f"{role}: has the attribute {attribute}"
        for (granted,) in await connection.fetch(MEMBERSHIPS, role):
            yield f"{role}: is a member of {granted}"
    limit = await connection.fetchval(
        "SELECT rolconnlimit FROM pg_roles WHERE rolname = $1", roles.APP
    )
    if limit != (right := await roles.connection_limit(connection)):
        yield f"{roles.APP}: its connection limit is {limit}, expected {right}"
    for other in roles.OTHER_DATABASES:
        may = "SELECT has_database_privilege($1, $2, 'CONNECT')"
        if await connection.fetchval(may, roles.APP, other):
            yield f"{roles.APP}: may connect to {other}, where its settings do not apply"
    if await connection.fetchval(
        "SELECT has_function_privilege($1, 'lo_create(oid)', 'EXECUTE')", roles.APP
    ):
        yield f"{roles.APP}: may create large objects"
    readable = await connection.fetchval("SELECT has_table_privilege('pg_authid', 'SELECT')")
    if readable and not await connection.fetchval(PASSWORDS, roles.APP):
        yield f"{roles.APP}: its password is not the one in the pooler's lookup table"
