"""The roles and what each may do; the password lookup that PgBouncer asks.

Owns everything an administrator does once per database. Leaves tables to the migrations, which
the owner role runs. Needs CREATEROLE and CREATEDB, not a superuser: no managed Postgres has one.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import stringprep
import unicodedata
from base64 import b64decode, b64encode
from typing import Any

import asyncpg

OWNER = "storefront_owner"
APP = "appuser"
LOOKUP = "pooler_lookup"

#: Per role, because PgBouncer refuses startup parameters other than a handful (`unsupported
#: startup parameter`) or, with `ignore_startup_parameters`, drops them in silence.
OWNER_SETTINGS = {
    # A migration that waits for its lock stops every read that comes after it. Rather try again.
    "lock_timeout": "2s",
}
APP_SETTINGS = {
    # The only certain end of a query: asyncpg's cancel is a connection of its own, which a full or
    # load-balanced PgBouncer may never match to it. Below the function's time-out.
    "statement_timeout": "5s",
    # A sandbox frozen inside a transaction pins a server connection, and its locks, until this.
    "idle_in_transaction_session_timeout": "5s",
    # Compiling a query takes longer than a read by primary key runs.
    "jit": "off",
}

#: Characters that SASLprep forbids: RFC 4013, section 2.3, and those that Unicode 3.2 has not.
FORBIDDEN = (
    stringprep.in_table_a1,
    stringprep.in_table_c12,
    stringprep.in_table_c21_c22,
    stringprep.in_table_c3,
    stringprep.in_table_c4,
    stringprep.in_table_c5,
    stringprep.in_table_c6,
    stringprep.in_table_c7,
    stringprep.in_table_c8,
    stringprep.in_table_c9,
)

LOOKUP_SCHEMA = """
CREATE SCHEMA IF NOT EXISTS pooler;
REVOKE ALL ON SCHEMA pooler FROM PUBLIC;
-- A table of verifiers instead of pg_authid, which no one may read on a managed Postgres. A
-- verifier is what SCRAM stores: it proves a password and does not reveal it.
CREATE TABLE IF NOT EXISTS pooler.verifiers (role name PRIMARY KEY, verifier text NOT NULL);
REVOKE ALL ON pooler.verifiers FROM PUBLIC;
-- SECURITY DEFINER: the pooler's role may ask for one role at a time and never read the table.
CREATE OR REPLACE FUNCTION pooler.lookup(requested text, OUT role name, OUT verifier text)
  RETURNS SETOF record LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog
  AS 'SELECT v.role, v.verifier FROM pooler.verifiers v WHERE v.role = requested';
REVOKE ALL ON FUNCTION pooler.lookup(text) FROM PUBLIC;
"""


class ForeignRoleError(Exception):
    """A role of that name serves something else."""


async def bootstrap(admin: dict[str, Any], database: str, passwords: dict[str, str]) -> None:
    """Create or mend the roles, the database and the lookup. Safe to run again.

    `admin`: asyncpg connection arguments of the administrator, without a database. `passwords`:
    role → password, for OWNER, APP and LOOKUP. Raises asyncpg's and the network's errors, and
    ForeignRoleError where one was not made by us for this database: roles are the server's, and a
    new password of one would lock out the pooler of another database.
    """
    connection = await asyncpg.connect(**admin, database="postgres")
    try:
        ours = f"warm-engine: {database}"
        for role in (OWNER, APP, LOOKUP):
            found = await connection.fetchrow(
                "SELECT shobj_description(oid, 'pg_authid') FROM pg_roles WHERE rolname = $1", role
            )
            if found is None:
                async with connection.transaction():
                    await connection.execute(f"CREATE ROLE {role} LOGIN")
                    await connection.execute(f"COMMENT ON ROLE {role} IS '{ours}'")
            elif found[0] != ours:
                raise ForeignRoleError(
                    f"the role {role} is there already, and not for the database {database}. Use a"
                    " Postgres of its own; or, if nothing else logs in as it, and its password may"
                    f" change: COMMENT ON ROLE {role} IS '{ours}'"
                )
        if not await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", database):
            # A managed Postgres' administrator may give a database only to a role it belongs to.
            await connection.execute(f"GRANT {OWNER} TO CURRENT_USER")
            await connection.execute(f'CREATE DATABASE "{database}" OWNER {OWNER}')
        for role, settings in ((OWNER, OWNER_SETTINGS), (APP, APP_SETTINGS)):
            for setting, value in settings.items():
                await connection.execute(
                    f"ALTER ROLE {role} IN DATABASE \"{database}\" SET {setting} = '{value}'"
                )
    finally:
        await connection.close()

    connection = await asyncpg.connect(**admin, database=database)
    try:
        await connection.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')
        await connection.execute(f'GRANT CONNECT ON DATABASE "{database}" TO {APP}, {LOOKUP}')
        await connection.execute(LOOKUP_SCHEMA)
        await connection.execute(f"GRANT USAGE ON SCHEMA pooler TO {LOOKUP}")
        await connection.execute(f"GRANT EXECUTE ON FUNCTION pooler.lookup(text) TO {LOOKUP}")
        for role, password in passwords.items():
            await set_password(connection, role, password, through_pooler=role == APP)
    finally:
        await connection.close()


async def set_password(
    connection: asyncpg.Connection[Any], role: str, password: str, *, through_pooler: bool = True
) -> None:
    """Give `role` a password, in Postgres and in the pooler's lookup at the same instant, so that
    both accept the new one from the next connection on. Only its SCRAM verifier leaves this
    process: the password is in no log and no `pg_stat_activity`.

    `connection` must be the administrator's, to the database with the lookup.
    """
    verifier = scram_verifier(password)
    known = await connection.fetchval("SELECT verifier FROM pooler.verifiers WHERE role = $1", role)
    # A new verifier of an old password has another salt: with what PgBouncer kept of a warm
    # sandbox's login it could open no further server connection.
    if known and known == scram_verifier(password, salt_of(known)):
        verifier = known
    async with connection.transaction():
        await connection.execute(f"ALTER ROLE {role} PASSWORD '{verifier}'")
        if through_pooler:
            await connection.execute(
                "INSERT INTO pooler.verifiers VALUES ($1, $2)"
                " ON CONFLICT (role) DO UPDATE SET verifier = excluded.verifier",
                role,
                verifier,
            )


def scram_verifier(password: str, salt: bytes | None = None) -> str:
    """The text that Postgres and PgBouncer store for `password` (RFC 5803, Postgres' order)."""
    salt = salt or os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", _prepared(password).encode(), salt, 4096)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [b64encode(part).decode() for part in (salt, stored_key, server_key)]
    return f"SCRAM-SHA-256$4096:{encoded[0]}${encoded[1]}:{encoded[2]}"


def _prepared(password: str) -> str:
    """SASLprep (RFC 4013) as Postgres and its clients have it: one that it forbids is not refused,
    but counts as it is."""
    mapped = (
        " " if stringprep.in_table_c12(each) else each
        for each in password
        if not stringprep.in_table_b1(each)
    )
    prepared = unicodedata.normalize("NFKC", "".join(mapped))
    leftward = [stringprep.in_table_d1(each) for each in prepared]
    if (
        password.isascii()
        or not prepared
        or any(forbids(each) for each in prepared for forbids in FORBIDDEN)
        or (any(leftward) and not (leftward[0] and leftward[-1]))
        or (any(leftward) and any(map(stringprep.in_table_d2, prepared)))
    ):
        return password
    return prepared


def salt_of(verifier: str) -> bytes:
    return b64decode(verifier.split("$")[1].partition(":")[2])
