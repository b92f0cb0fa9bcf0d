"""Passwords and certificates that containers need before the first server starts.

Each container has its own folder (a volume) with only the files it needs, owned by the account that
it runs as. The content is random, created once and kept until the volumes are removed. The CA's key
is not stored, so the CA cannot sign anything else.
"""

import os
import secrets
from pathlib import Path

import trustme

#: Container → the user id that it runs as.
ACCOUNTS = {"postgres": 999, "pgbouncer": 998, "handler": 993, "admin": 993}
#: Written last: without it, creation was interrupted and is repeated.
COMPLETE = "complete"
#: From the network only with TLS and SCRAM; over the socket, anyone who may enter the container.
PG_HBA = b"""
local    all  all       trust
hostssl  all  all  all  scram-sha-256
"""


def make(folder: Path) -> None:
    """Create a folder per container below `folder`, if they are not complete.

    Run it as root, because it changes the owner of files. Raises OSError.
    """
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
    """Return the content of each file, by container and file name."""
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
