"""A PgBouncer server with the shared pgbouncer.ini."""

import os
import shutil
import signal
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import trustme

from infra.database.roles import LOOKUP
from infra.local import ROOT, LabError, system_packages
from infra.local.server import Account, Server

CONFIGURATION = ROOT / "pgbouncer"


@dataclass(frozen=True)
class Upstream:
    """The Postgres behind a PgBouncer, with the logins of the lookup role and the administrator."""

    host: str
    port: int
    database: str
    lookup_password: str
    admin: str
    admin_password: str


class PgBouncer(Server):
    """A PgBouncer process. `settings` take precedence over those of pgbouncer.ini."""

    name = "PgBouncer"

    def __init__(
        self,
        folder: Path,
        account: Account,
        upstream: Upstream,
        *,
        tls: bool = True,
        settings: dict[str, str | int] | None = None,
    ) -> None:
        super().__init__(folder, account)
        program = system_packages.find_pgbouncer()
        if program is None:
            raise LabError("there is no PgBouncer. Run: make demo, which fetches one")
        self.program = program
        if program.version >= (1, 23):  # where SIGTERM waits for all clients
            self.stop_signal = signal.SIGQUIT
        self.upstream = upstream
        self.settings = settings or {}
        self.ca = folder / "ca.pem" if tls else None
        self.path = self._accessible_program()
        self._write_configuration()

    def _accessible_program(self) -> Path:
        """Return the program; for root a copy that the servers' account can execute."""
        if os.getuid() != 0:
            return self.program.path
        if self.program.libraries is not None:
            shutil.copytree(self.program.libraries, self.folder / "lib", symlinks=True)
        return Path(shutil.copy(self.program.path, self.folder / "pgbouncer"))

    def _write_configuration(self) -> None:
        site: dict[str, str | int] = {
            "listen_addr": self.host,
            "admin_users": self.upstream.admin,
            # The wheel's Postgres is built without TLS.
            "server_tls_sslmode": "disable",
        }
        if self.ca is None:
            site["client_tls_sslmode"] = "disable"
        else:
            self._make_certificates(self.ca)
            site |= {"client_tls_cert_file": "server.pem", "client_tls_key_file": "server.key"}
        self._site = site | self.settings
        users = {
            LOOKUP: self.upstream.lookup_password,
            self.upstream.admin: self.upstream.admin_password,
        }
        self.account.write(
            self.folder / "userlist.txt",
            "".join(f'"{user}" "{password}"\n' for user, password in users.items()),
        )
        for name in ("pgbouncer.ini", "1.21.ini"):
            self.account.write(self.folder / name, (CONFIGURATION / name).read_text())
        newer = (self.folder / "1.21.ini").read_text() if self.program.version >= (1, 21) else ""
        self.account.write(self.folder / "version.ini", newer)

    def _make_certificates(self, ca_file: Path) -> None:
        ca = trustme.CA(organization_name="Warm Engine lab")
        certificate = ca.issue_cert("localhost", self.host)
        self.account.write(ca_file, ca.cert_pem.bytes().decode(), 0o644)
        chain = b"".join(blob.bytes() for blob in certificate.cert_chain_pems)
        self.account.write(self.folder / "server.pem", chain.decode())
        self.account.write(self.folder / "server.key", certificate.private_key_pem.bytes().decode())

    def command(self) -> list[str]:
        upstream = self.upstream
        lines = [
            *(f"{key} = {value}" for key, value in self._site.items()),
            f"listen_port = {self.port}",
            "[databases]",
            f"{upstream.database} = host={upstream.host} port={upstream.port} auth_user={LOOKUP}",
            # Limits the lookup's pool in a burst of logins.
            "[users]",
            f"{LOOKUP} = max_user_connections=2",
        ]
        self.account.write(self.folder / "site.ini", "\n".join([*lines, ""]))
        return [str(self.path), str(self.folder / "pgbouncer.ini")]

    def environment(self) -> dict[str, str]:
        copy, original = self.folder / "lib", self.program.libraries
        return {"LD_LIBRARY_PATH": str(copy if copy.exists() else original)} if original else {}

    def is_ready(self) -> bool:
        with socket.socket() as probe:
            return (
                probe.connect_ex((self.host, self.port)) == 0
                and "process up" in self.log_since_start()
            )

    def show(self, table: str) -> list[dict[str, Any]]:
        """Return a table of the console, such as `show("POOLS")`."""
        with self.console() as console:
            return console.execute(f"SHOW {table}").fetchall()

    def console(self) -> psycopg.Connection[dict[str, Any]]:
        """Open a connection to the console with rows as dictionaries."""
        return console(
            host=self.host,
            port=self.port,
            user=self.upstream.admin,
            password=self.upstream.admin_password,
            sslmode="disable" if self.ca is None else "verify-full",
            sslrootcert="" if self.ca is None else str(self.ca),
        )

    def ssl_context(self) -> ssl.SSLContext | None:
        """Return a context with this PgBouncer's CA, or None without TLS."""
        return None if self.ca is None else ssl.create_default_context(cafile=self.ca)


def console(**login: Any) -> psycopg.Connection[dict[str, Any]]:
    """Connect to a PgBouncer console. `login`: libpq's parameters."""
    # The console only supports the simple protocol, which asyncpg cannot read rows from.
    return psycopg.connect(
        dbname="pgbouncer",
        autocommit=True,
        cursor_factory=psycopg.ClientCursor,
        row_factory=psycopg.rows.dict_row,
        **login,
    )
