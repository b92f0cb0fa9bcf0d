"""The stack without Docker: Postgres behind PgBouncer, migrated, with sample orders.

Owns the private folder that everything lives in, and that nothing outlives. As a library:
`with Stack() as stack: …`, several at once, each on ports of its own.
"""

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import psutil

from handler.settings import Settings
from infra.database import roles, schema
from infra.local import ROOT, LabError
from infra.local.interruption import held_back, run
from infra.local.pgbouncer import PgBouncer, Upstream
from infra.local.postgres import ADMIN, Postgres
from infra.local.server import account, wait_until

DATABASE = "storefront"
ENDPOINTS = ROOT / ".stack/endpoints.json"
PREFIX = "warm-engine-"
#: A cluster, its log and, for root, a copy of the binaries, in bytes.
ROOM = 200 * 2**20
VAR_TMP = Path("/var/tmp")  # noqa: S108  # mkdtemp makes a private folder in it


class Stack:
    """Postgres and PgBouncer. Raises LabError from `with` where they cannot be had; then, as after
    any end of the block, no process and no folder of theirs is left.

    `max_connections`: Postgres' limit. `tls`: from clients to PgBouncer. `settings`: what PgBouncer
    is told besides its ini. `report`: gets a line at each step.
    """

    def __init__(
        self,
        *,
        max_connections: int = 20,
        tls: bool = True,
        settings: dict[str, str | int] | None = None,
        report: Callable[[str], None] = lambda line: None,
    ) -> None:
        self._max_connections = max_connections
        self._tls = tls
        self._settings = settings
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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
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
        self.pgbouncer = self._undo.enter_context(self.another_pgbouncer(tls=self._tls))

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
        self, *, tls: bool = True, settings: dict[str, str | int] | None = None
    ) -> Iterator[PgBouncer]:
        """A PgBouncer in front of this stack's Postgres, for the time of the block."""
        folder = Path(tempfile.mkdtemp(prefix="pgbouncer-", dir=self.folder))
        account().own(folder, 0o700)
        upstream = Upstream(
            host=self.postgres.host,
            port=self.postgres.port,
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
            settings={**(self._settings or {}), **(settings or {})},
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
            **{
                "host": (through or self.postgres).host,
                "port": (through or self.postgres).port,
                "name": DATABASE,
                "user": user,
                "password": self._passwords[user],
                "sslmode": "verify-full" if through and through.ca else "disable",
                "sslrootcert": through.ca if through else None,
                **more,
            }
        )

    def environment(self, through: PgBouncer | None = None) -> dict[str, str]:
        """What a handler needs in its environment to go through the stack's PgBouncer."""
        settings = self.settings(through=through or self.pgbouncer)
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
        with contextlib.suppress(OSError, ValueError, KeyError):
            if is_up(Path(json.loads(path.read_text())["folder"])):
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


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for one stack, gone after the block. Sweeps up first what killed runs left.

    A lock on a file in it says that its owner lives: the kernel gives it up when a process dies,
    however it died, and a process id that came round again cannot fool it.
    """
    parents = [path for path in (Path(tempfile.gettempdir()), VAR_TMP) if path.is_dir()]
    for parent in parents:
        for left in parent.glob(f"{PREFIX}*"):
            sweep(left)
    folder, lock = _claim(_roomy(parents))
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def _remove(folder: Path) -> None:
    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(gone, 5)  # a program that was killed on the way may still be writing


def _roomy(parents: list[Path]) -> Path:
    """The first with room, where the account that the servers run as may execute programs."""
    for path in parents:
        programs = not os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0)
        if programs and shutil.disk_usage(path).free >= ROOM:
            return path
    raise LabError(
        f"{ROOM >> 20} MiB free in a folder that may hold programs are needed, and "
        f"{' and '.join(map(str, parents))} lack them. Make room, or set TMPDIR to another"
    )


def _claim(parent: Path) -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        account().own(folder, 0o700)
        lock = (folder / "lock").open("w")
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return folder, lock
        lock.close()  # a sweep came in between and took it for left behind


def is_up(folder: Path) -> bool:
    """Whether the stack of that folder has an owner that lives."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Take away a stack whose owner was killed: its servers, then its folder."""
    try:
        lock = (folder / "lock").open("r+")
    except FileNotFoundError:
        # Being made at this moment, or by who was killed at such a moment.
        if time.time() - folder.stat().st_mtime > 60:
            shutil.rmtree(folder, ignore_errors=True)
        return
    except OSError:
        return  # another user's
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        left = []
        for record in folder.rglob("*.process"):
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                pid, created = record.read_text().split()
                process = psutil.Process(int(pid))
                if process.create_time() == float(created):
                    left += [process, *process.children(recursive=True)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_until(lambda: all(map(_ended, left)), 5)
        _remove(folder)


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # init may take its time
    except psutil.NoSuchProcess:
        return True
