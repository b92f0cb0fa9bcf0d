"""`python -m infra.database`: makes a database ready for the handler, from the network beside it.

Owns where the passwords of a one-shot container come from: a file each. `migrate` does what an
administrator does once and a deploy each time; `secrets` makes what has to be there before the
first server starts, which `first_start` describes.
"""

import argparse
import asyncio
import os
import ssl
import sys
from pathlib import Path

import asyncpg

from handler.settings import SettingsError, load
from infra.database import first_start, roles, schema

ADMIN = "postgres"


def password(role: str) -> str:
    return (Path(os.environ.get("SECRETS", "/run/secrets")) / f"{role}-password").read_text()


async def migrate(sample: bool) -> None:
    owner = load(user=roles.OWNER, password=password("owner"))
    admin = {
        "host": owner.host,
        "port": owner.port,
        "user": ADMIN,
        "password": password("admin"),
        "ssl": ssl.create_default_context(cafile=owner.sslrootcert),
    }
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
    parser.add_argument("what", choices=["secrets", "migrate"])
    parser.add_argument("--sample", action="store_true", help="fill an empty table orders")
    arguments = parser.parse_args()
    what = arguments.what
    try:
        if what == "secrets":
            first_start.make(Path("/secrets"))
        else:
            asyncio.run(migrate(arguments.sample))
    except (SettingsError, OSError, asyncpg.PostgresError, roles.ForeignRoleError) as error:
        print(f"{what}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
