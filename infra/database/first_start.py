"""What a stack of containers needs before its first server starts: passwords and certificates.

Owns who may read which of them, and who may come in to Postgres: each reader has a folder (a
volume) of its own, and what is in it belongs to the account that the reader runs as. Everything is
made at random, once, and stays until the volumes go. The CA's key is never written: what it signed
here is all it will ever sign.
"""

import os
import secrets
from pathlib import Path

import trustme

#: Reader → the number of the account that its container runs as.
ACCOUNTS = {"postgres": 999, "pgbouncer": 998, "handler": 993, "admin": 993}
#: Written last: without it a start was cut short, and everything is made anew.
COMPLETE = "complete"
#: From the network by TLS and password only, so that neither goes over it in clear; by the socket,
#: whoever may enter the container.
PG_HBA = b"""
local    all  all       trust
hostssl  all  all  all  scram-sha-256
"""


def make(folder: Path) -> None:
    """Fill a folder per reader below `folder`, unless they are full. As root: it gives files away.
    Raises OSError."""
    if (folder / "admin" / COMPLETE).exists():
        return
    for reader, files in contents().items():
        for name, content in files.items():
            path = folder / reader / name
            path.unlink(missing_ok=True)
            with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "wb") as new:
                new.write(content)
            os.chown(path, ACCOUNTS[reader], ACCOUNTS[reader])
    (folder / "admin" / COMPLETE).touch()


def contents() -> dict[str, dict[str, bytes]]:
    """Reader → file name → what is in it."""
    authority = trustme.CA(organization_name="Warm Engine")
    passwords = {
        f"{role}-password": secrets.token_urlsafe(24).encode()
        for role in ("admin", "owner", "app", "lookup", "console")
    }

    def only(*names: str) -> dict[str, bytes]:
        chosen = {f"{name}-password": passwords[f"{name}-password"] for name in names}
        return chosen | {"ca.pem": authority.cert_pem.bytes()}

    def server(name: str) -> dict[str, bytes]:
        certificate = authority.issue_cert(name)
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        return {"server.pem": chain, "server.key": certificate.private_key_pem.bytes()}

    return {
        "postgres": only("admin") | server("postgres") | {"pg_hba.conf": PG_HBA},
        "pgbouncer": only("lookup", "console") | server("pgbouncer"),
        "handler": only("app"),
        "admin": only("admin", "owner", "app", "lookup", "console"),
    }
