"""`python -m infra.database`: prepares a database for the handler, in a one-shot container.

`secrets` creates passwords and certificates before the first server starts (see `first_start`),
`migrate` creates or updates roles and schema, and `check` lists what roles have changed since.
Passwords are read from files in SECRETS, by default /run/secrets.
"""

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import asyncpg

from handler.warm.database.tls import tls_context
from handler.warm.settings import Settings, SettingsError, load_settings
from infra.database import first_start, roles, schema
from infra.database.check import differences

ADMIN = "postgres"


def password(role: str) -> str:
    return (Path(os.environ.get("SECRETS", "/run/secrets")) / f"{role}-password").read_text()


def administrator(settings: Settings) -> dict[str, Any]:
    return {
        "host": settings.host,
        "port": settings.port,
        "user": ADMIN,
        "password": password("admin"),
        "ssl": tls_context(settings),
    }


async def check() -> list[str]:
    settings = load_settings()
    return await differences(administrator(settings), settings.name)


async def migrate(sample: bool) -> None:
    owner = load_settings(user=roles.OWNER, password=password("owner"))
    admin = administrator(owner)
    passwords = {
        roles.OWNER: password("owner"),
        roles.APP: password("app"),
        roles.LOOKUP: password("lookup"),
    }
    await roles.bootstrap(admin, owner.name, passwords)
    await schema.migrate(owner)
    if sample:
        await schema.load_sample(owner)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.database", description=__doc__)
    parser.add_argument("task", choices=["secrets", "migrate", "check"])
    parser.add_argument("--sample", action="store_true", help="insert the rows of sample.sql")
    arguments = parser.parse_args()
    task = arguments.task
    try:
        if task == "secrets":
            first_start.make(Path("/secrets"))
        elif task == "check":
            lines = asyncio.run(check())
            for line in lines:
                print(line)
            return 1 if lines else 0
        else:
            asyncio.run(migrate(arguments.sample))
    except (SettingsError, OSError, asyncpg.PostgresError, roles.ForeignRoleError) as error:
        print(f"{task}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
