"""The stack without Docker: Postgres behind PgBouncer, migrated, with sample orders.

Owns the order in which they start and stop, and saying where they are. As a library:
`with Stack() as stack: …`, several at once, each on ports of its own.
"""

import contextlib
import json
import os
import secrets
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from handler.settings import Settings
from infra.database import roles, schema
from infra.local import ROOT, LabError
from infra.local.folder import is_up, private_folder
from infra.local.interruption import held_back, run
from infra.local.pgbouncer import PgBouncer, Upstream
from infra.local.postgres import ADMIN, Postgres
from infra.local.server import account

DATABASE = "storefront"
ENDPOINTS = ROOT / ".stack/endpoints.json"


class Stack:
    """Postgres and PgBouncer. Raises LabError from `with` where they cannot be had; then, as after
    any end of the block, no process and no folder of theirs is left.

    `max_connections`: Postgres' limit. `report`: gets a line at each step.
    """

    def __init__(
        self,
        *,
        max_connections: int = 20,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._max_connections = max_connections
        self._report = report
        self._passwords = {
            role: secrets.token_urlsafe(16) for role in (roles.OWNER, roles.APP, roles.LOOKUP)
        }
        self._undo = contextlib.ExitStack()
        self.folder: Path
        self.postgres: Postgres
        self.pgbouncer: PgBouncer

    def __enter__(self) -> "Stack":
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _start(self) -> None:
        with held_back():
            self.folder = self._undo.enter_context(private_folder())
        self._report("Postgres: a new cluster")
        self.postgres = Postgres(self.folder, account(), self._max_connections)
        self._undo.callback(self.postgres.stop)
        self.postgres.initialise()
        self.postgres.start()
        self._report("database: roles, migrations, sample orders")
        run(self._fill)
        self._report("PgBouncer")
        self.pgbouncer = self._undo.enter_context(self.another_pgbouncer())

    async def _fill(self) -> None:
        await roles.bootstrap(self.postgres.admin, DATABASE, self._passwords)
        owner = self.settings(user=roles.OWNER)
        await schema.migrate(owner)
        await schema.load_sample(owner)

    def _stop(self) -> None:
        with held_back():
            self._undo.close()

    @contextlib.contextmanager
    def another_pgbouncer(
        self,
        *,
        tls: bool = True,
        settings: dict[str, str | int] | None = None,
        postgres_host: str | None = None,
        postgres_port: int | None = None,
    ) -> Iterator[PgBouncer]:
        """A PgBouncer in front of this stack's Postgres, for the time of the block.
        `postgres_host`, `postgres_port`: where it finds that, if under a name or with a relay in
        between."""
        folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=self.folder))
        account().own(folder, 0o700)
        upstream = Upstream(
            host=postgres_host or self.postgres.host,
            port=postgres_port or self.postgres.port,
            database=DATABASE,
            lookup_password=self._passwords[roles.LOOKUP],
            admin=ADMIN,
            admin_password=self.postgres.password,
        )
        bouncer = PgBouncer(
            folder,
            account(),
            upstream,
            tls=tls,
            settings=settings,
        )
        try:
            bouncer.start()
            yield bouncer
        finally:
            bouncer.stop()

    def settings(
        self, *, user: str = roles.APP, through: PgBouncer | None = None, **more: Any
    ) -> Settings:
        """The handler's settings for a role, straight to Postgres or `through` a PgBouncer."""
        return Settings(
            # Whatever DB_* the caller's environment holds is for his handler, not for this.
            _env_prefix="WARM_ENGINE_LABORATORY_",
            **{
                "host": (through or self.postgres).host,
                "port": (through or self.postgres).port,
                "name": DATABASE,
                "user": user,
                "password": self._passwords[user],
                "sslmode": "verify-full" if through and through.ca else "disable",
                "sslrootcert": through.ca if through else None,
                **more,
            },
        )

    def environment(
        self, through: PgBouncer | None = None, *, direct: bool = False
    ) -> dict[str, str]:
        """What a handler needs in its environment to go through the stack's PgBouncer, through
        another one or, `direct`, past it."""
        settings = self.settings(through=None if direct else through or self.pgbouncer)
        environment = {
            "DB_HOST": settings.host,
            "DB_PORT": str(settings.port),
            "DB_NAME": settings.name,
            "DB_USER": settings.user,
            "DB_PASS": settings.password.get_secret_value(),
            "DB_SSLMODE": settings.effective_sslmode,
        }
        if settings.sslrootcert:
            environment["DB_SSLROOTCERT"] = str(settings.sslrootcert)
        return environment

    @contextlib.contextmanager
    def published(self, path: Path = ENDPOINTS) -> Iterator[bool]:
        """Say in `path` (0600) where this stack is, for the time of the block. False, and nothing
        said, where another stack that is up says so there already."""
        taken = False
        with contextlib.suppress(OSError, ValueError, KeyError):
            taken = is_up(Path(json.loads(path.read_text())["folder"]))
        if taken:
            yield False
            return
        endpoints = {
            "postgres": {"host": self.postgres.host, "port": self.postgres.port},
            "pgbouncer": {"host": self.pgbouncer.host, "port": self.pgbouncer.port},
            "admin": {"user": ADMIN, "password": self.postgres.password},
            "env": self.environment(),
            "folder": str(self.folder),
        }
        path.parent.mkdir(exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(endpoints, file, indent=2)
        draft.rename(path)
        try:
            yield True
        finally:
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                path.parent.rmdir()


def read_endpoints(path: Path = ENDPOINTS) -> dict[str, Any]:
    """What the stack that is up published. Raises LabError where none is."""
    try:
        endpoints: dict[str, Any] = json.loads(path.read_text())
        if is_up(Path(endpoints["folder"])):
            return endpoints
    except (OSError, ValueError, KeyError):
        pass
    raise LabError("no stack is up. Start one in another terminal: make run")
