"""The stack of docker-compose.yml, seen from a container in its network.

`Stack` has a part of the interface of `infra.local.stack.Stack`. Compose starts and stops it.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

from infra.local.pgbouncer import console
from infra.local.postgres import ADMIN, administrator
from infra.local.service import SAMPLE
from infra.local.stack import Stack as NativeStack

SECRETS = Path("/run/secrets")


def is_inside_compose() -> bool:
    """Return whether this process runs in a container of Compose."""
    return "LABORATORY_POSTGRES" in os.environ


def admin_login() -> dict[str, Any]:
    """Return asyncpg's arguments for the superuser."""
    return {
        "host": os.environ["LABORATORY_POSTGRES"],
        "user": ADMIN,
        "password": (SECRETS / "admin-password").read_text(),
        "ssl": ssl.create_default_context(cafile=os.environ["DB_SSLROOTCERT"]),
    }


def console_login() -> dict[str, Any]:
    """Return psycopg's arguments for PgBouncer's administrator."""
    return {
        "host": os.environ["DB_HOST"],
        "port": int(os.environ["DB_PORT"]),
        "user": "console",
        "password": (SECRETS / "console-password").read_text(),
        "sslmode": "verify-full",
        "sslrootcert": os.environ["DB_SSLROOTCERT"],
    }


@dataclass(frozen=True)
class Postgres:
    admin: dict[str, Any]
    max_connections: int
    version: str

    def administrator(self) -> psycopg.Connection[Any]:
        """Open a connection of the superuser in autocommit, for use on a thread."""
        login = {name: self.admin[name] for name in ("host", "user", "password")}
        ca = os.environ["DB_SSLROOTCERT"]
        return administrator(**login, sslmode="verify-full", sslrootcert=ca)


class PgBouncer:
    def show(self, table: str) -> list[dict[str, Any]]:
        """Return a table of the console, such as `show("POOLS")`."""
        with self.console() as console:
            return console.execute(f"SHOW {table}").fetchall()

    def console(self) -> psycopg.Connection[dict[str, Any]]:
        return console(**console_login())


class Stack:
    """Compose's servers; `find` connects to them."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.pgbouncer = PgBouncer()
        self.service = SAMPLE

    @classmethod
    async def find(cls) -> "Stack":
        """Connect to Postgres and return the stack. Raises errors of asyncpg and the network."""
        admin = admin_login()
        connection = await asyncpg.connect(**admin)
        try:
            limit = int(await connection.fetchval("SHOW max_connections"))
            version = (await connection.fetchval("SHOW server_version")).split()[0]
        finally:
            await connection.close()
        return cls(Postgres(admin, limit, version))

    def environment(self, *, direct: bool = False) -> dict[str, str]:
        """Return the handler's variables for PgBouncer or, with `direct`, Postgres."""
        variables = {name: value for name, value in os.environ.items() if name.startswith("DB_")}
        variables["DB_PASS"] = (SECRETS / "app-password").read_text()
        if direct:
            variables |= {"DB_HOST": self.postgres.admin["host"], "DB_PORT": "5432"}
        return variables


RunningStack = NativeStack | Stack
