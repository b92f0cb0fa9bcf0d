"""The stack without Docker: Postgres and PgBouncer with a migrated database and sample rows.

As a library: `with Stack() as stack: …`. Several can run at the same time.
"""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from handler.warm.settings import Settings
from infra.database import roles, schema
from infra.local import ROOT, LabError
from infra.local.pgbouncer import PgBouncer, Upstream
from infra.local.postgres import ADMIN, Postgres
from infra.local.private_directory import is_up, private_directory, sweep
from infra.local.server import account
from infra.local.service import SAMPLE, Service, last_line
from infra.local.signals import deferred_signals, run_async, run_program

DATABASE = SAMPLE.database
ENDPOINTS = ROOT / ".stack/endpoints.json"


class Stack:
    """A context manager that runs Postgres and PgBouncer, and removes everything afterwards.

    `max_connections`: the limit of Postgres. `service`: the one whose roles and tables are created.
    `report` is called with a line for each step. Raises LabError if a server cannot start.
    """

    def __init__(
        self,
        *,
        max_connections: int = 20,
        service: Service = SAMPLE,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.service = service
        self._max_connections = max_connections
        self._report = report
        self._passwords = {
            role: secrets.token_urlsafe(16) for role in (service.owner, service.app, roles.LOOKUP)
        }
        self._cleanup = contextlib.ExitStack()
        self.folder: Path
        self.postgres: Postgres
        self.pgbouncer: PgBouncer

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with deferred_signals():
            self._cleanup.close()

    def _start(self) -> None:
        sweep()  # may be interrupted
        with deferred_signals():
            self.folder = self._cleanup.enter_context(private_directory())
        self.postgres = Postgres(self.folder, account(), self._max_connections)
        self._cleanup.callback(self.postgres.stop)
        self._create_database()
        self._report("PgBouncer")
        self.pgbouncer = self._cleanup.enter_context(self.another_pgbouncer())

    def _create_database(self) -> None:
        self._report("Postgres: a new cluster")
        self.postgres.initialise()
        self.postgres.start()
        self._report("database: roles, migrations, sample rows")
        if self.service.migrate:
            self._run_migrations()
        else:
            run_async(self._load_schema)

    async def _load_schema(self) -> None:
        await roles.bootstrap(self.postgres.admin, DATABASE, self._passwords)
        owner = self.settings(user=roles.OWNER)
        await schema.migrate(owner)
        await schema.load_sample(owner)

    def _run_migrations(self) -> None:
        """Prepare the database with the service's own command and interpreter."""
        secrets_folder = self.folder / "secrets"
        secrets_folder.mkdir(mode=0o700)
        for name, password in {
            "admin": self.postgres.password,
            "owner": self._passwords[self.service.owner],
            "app": self._passwords[self.service.app],
            "lookup": self._passwords[roles.LOOKUP],
        }.items():
            path = secrets_folder / f"{name}-password"
            path.touch(mode=0o600)
            path.write_text(password)
        migration = run_program(
            [self.service.python, *self.service.migrate],
            cwd=self.service.root,
            env={
                "PATH": os.defpath,
                "SECRETS": str(secrets_folder),
                **self.service.environment,
                **self.owner_environment(),
            },
        )
        if migration.returncode:
            reason = last_line(migration.stderr)
            raise LabError(f"the migrations of {self.service.root} failed: {reason}")

    @contextlib.contextmanager
    def another_pgbouncer(
        self,
        *,
        tls: bool = True,
        settings: dict[str, str | int] | None = None,
        postgres_host: str | None = None,
        postgres_port: int | None = None,
    ) -> Iterator[PgBouncer]:
        """Run another PgBouncer for this Postgres.

        Set `postgres_host` or `postgres_port` to reach Postgres by a host name or through a proxy.
        """
        folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=self.folder))
        account().let_in(folder)
        upstream = Upstream(
            host=postgres_host or self.postgres.host,
            port=postgres_port or self.postgres.port,
            database=self.service.database,
            lookup_password=self._passwords[roles.LOOKUP],
            admin=ADMIN,
            admin_password=self.postgres.password,
        )
        bouncer = PgBouncer(folder, account(), upstream, tls=tls, settings=settings)
        try:
            bouncer.start()
            yield bouncer
        finally:
            bouncer.stop()

    def settings(
        self, *, user: str = "", through: PgBouncer | None = None, **overrides: Any
    ) -> Settings:
        """Return the handler's settings for a role (default: the application's), directly to
        Postgres or `through` a PgBouncer."""
        user = user or self.service.app
        server = through or self.postgres
        return Settings(
            # The caller's DB_* variables must not apply here.
            _env_prefix="WARM_ENGINE_LABORATORY_",
            **{
                "host": server.host,
                "port": server.port,
                "name": self.service.database,
                "user": user,
                "password": self._passwords[user],
                "sslmode": "verify-full" if through and through.ca else "disable",
                "sslrootcert": through.ca if through else None,
                **overrides,
            },
        )

    def environment(
        self, through: PgBouncer | None = None, *, direct: bool = False
    ) -> dict[str, str]:
        """Return the handler's variables for the stack's PgBouncer, another one or, with `direct`,
        Postgres."""
        return _variables(self.settings(through=None if direct else through or self.pgbouncer))

    def owner_environment(self) -> dict[str, str]:
        """Return the variables of a migration: the owner role, directly to Postgres."""
        return _variables(self.settings(user=self.service.owner))

    @contextlib.contextmanager
    def published(self, path: Path = ENDPOINTS) -> Iterator[bool]:
        """Write the stack's endpoints to `path` (mode 0600) for the block.

        Yield False, without writing, if another running stack has written its endpoints there.
        """
        if _read_running(path) is not None:
            yield False
            return
        endpoints = {
            "postgres": {"host": self.postgres.host, "port": self.postgres.port},
            "pgbouncer": {"host": self.pgbouncer.host, "port": self.pgbouncer.port},
            "admin": {"user": ADMIN, "password": self.postgres.password},
            "owner": self.owner_environment(),
            "env": self.environment(),
            "folder": str(self.folder),
        }
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            json.dump(endpoints, file, indent=2)
        draft.rename(path)
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def read_endpoints(path: Path = ENDPOINTS) -> dict[str, Any]:
    """Return the endpoints of the running stack. Raises LabError if there is none."""
    if (endpoints := _read_running(path)) is None:
        raise LabError("no stack is up. Start one in another terminal: make run")
    return endpoints


def _read_running(path: Path) -> dict[str, Any] | None:
    """Return the endpoints in `path`, or None if their stack is not running."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        endpoints: dict[str, Any] = json.loads(path.read_text())
        if is_up(Path(endpoints["folder"])):
            return endpoints
    return None


def _variables(settings: Settings) -> dict[str, str]:
    """Return the settings as the handler's variables."""
    variables = {
        "DB_HOST": settings.host,
        "DB_PORT": str(settings.port),
        "DB_NAME": settings.name,
        "DB_USER": settings.user,
        "DB_PASS": settings.password.get_secret_value(),
        "DB_SSLMODE": settings.effective_sslmode,
    }
    if settings.sslrootcert:
        variables["DB_SSLROOTCERT"] = str(settings.sslrootcert)
    return variables
