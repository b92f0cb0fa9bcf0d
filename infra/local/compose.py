"""The stack of docker-compose.yml, as the laboratory sees it from a container in its network.

Owns finding it. It has as much of `infra.local.stack.Stack` as a scenario needs; starting and
ending it is Compose's business. Nothing here knows Docker.
"""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import psycopg

from infra.local.pgbouncer import console
from infra.local.postgres import ADMIN

SECRETS = Path("/run/secrets")


def is_here() -> bool:
    """Whether this process is in a container beside one."""
    return "LABORATORY_POSTGRES" in os.environ


@dataclass(frozen=True)
class Postgres:
    admin: dict[str, Any]
    max_connections: int
    version: str

    def administrator(self) -> psycopg.Connection[Any]:
        """A connection of the superuser's, each statement by itself, for a thread that looks on."""
        return psycopg.connect(
            host=self.admin["host"],
            user=self.admin["user"],
            password=self.admin["password"],
            dbname="postgres",
            sslmode="verify-full",
            sslrootcert=os.environ["DB_SSLROOTCERT"],
            autocommit=True,
        )


class PgBouncer:
    def show(self, what: str) -> list[dict[str, Any]]:
        """A table of the console: `show("POOLS")`."""
        with self.console() as console:
            return console.execute(f"SHOW {what}").fetchall()

    def console(self) -> psycopg.Connection[dict[str, Any]]:
        return console(
            host=os.environ["DB_HOST"],
            port=int(os.environ["DB_PORT"]),
            user="console",
            password=(SECRETS / "console-password").read_text(),
            sslmode="verify-full",
            sslrootcert=os.environ["DB_SSLROOTCERT"],
        )


class Stack:
    """Made by `find`."""

    def __init__(self, postgres: Postgres) -> None:
        self.postgres = postgres
        self.pgbouncer = PgBouncer()

    @classmethod
    async def find(cls) -> "Stack":
        """Raises asyncpg's and the network's errors."""
        admin: dict[str, Any] = {
            "host": os.environ["LABORATORY_POSTGRES"],
            "user": ADMIN,
            "password": (SECRETS / "admin-password").read_text(),
            "ssl": ssl.create_default_context(cafile=os.environ["DB_SSLROOTCERT"]),
        }
        connection = await asyncpg.connect(**admin)
        try:
            limit = int(await connection.fetchval("SHOW max_connections"))
            version = (await connection.fetchval("SHOW server_version")).split()[0]
        finally:
            await connection.close()
        return cls(Postgres(admin, limit, version))

    def environment(self, *, direct: bool = False) -> dict[str, str]:
        """What a handler needs in its environment to go through PgBouncer or, `direct`, past it."""
        given = {name: value for name, value in os.environ.items() if name.startswith("DB_")}
        given["DB_PASS"] = (SECRETS / "app-password").read_text()
        return given | (
            {"DB_HOST": self.postgres.admin["host"], "DB_PORT": "5432"} if direct else {}
        )
