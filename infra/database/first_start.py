"""Passwords and certificates that containers need before the first server starts.

Each container has its own folder (a volume) with only the files it needs, owned by the account that
it runs as. Passwords and keys are random. They are created once and kept until the volumes are
removed. The CA's key is not stored, so the CA cannot sign anything else.
"""

import os
import secrets
from pathlib import Path

import trustme

#: Container → the user id that it runs as.
ACCOUNTS = {"postgres": 999, "pgbouncer": 998, "handler": 993, "admin": 993}
#: The file that is written last. If it is missing, the creation was interrupted and is repeated.
COMPLETE = "complete"
#: Over the network only with TLS and SCRAM; over the socket without a password, for whoever may
#: enter the container.
PG_HBA = b"""
local    all  all       trust
hostssl  all  all  all  scram-sha-256
"""


def make(folder: Path) -> None:
    """Create the folders of all containers below `folder`, unless they are complete.

    It must run as root, because it changes the owner of files. Raises OSError.
    """
    if (folder / "admin" / COMPLETE).exists():
        return
    for container, files in contents().items():
        for name, content in files.items():
            path = folder / container / name
            path.unlink(missing_ok=True)
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400)
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
            os.chown(path, ACCOUNTS[container], ACCOUNTS[container])
    (folder / "admin" / COMPLETE).touch()


def contents() -> dict[str, dict[str, bytes]]:
    """Return the content of each file, by container and file name."""
    authority = trustme.CA(organization_name="Warm Engine")
    passwords = {
        f"{role}-password": secrets.token_urlsafe(24).encode()
        for role in ("admin", "owner", "app", "lookup", "console")
    }

    def passwords_of(*roles: str) -> dict[str, bytes]:
        files = {f"{role}-password": passwords[f"{role}-password"] for role in roles}
        return files | {"ca.pem": authority.cert_pem.bytes()}

    def certificate_of(name: str) -> dict[str, bytes]:
        certificate = authority.issue_cert(name)
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        return {"server.pem": chain, "server.key": certificate.private_key_pem.bytes()}

    return {
        "postgres": passwords_of("admin") | certificate_of("postgres") | {"pg_hba.conf": PG_HBA},
        "pgbouncer": passwords_of("lookup", "console") | certificate_of("pgbouncer"),
        "handler": passwords_of("app"),
        "admin": passwords_of("admin", "owner", "app", "lookup", "console"),
    }
