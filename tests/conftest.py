"""Fixtures and helpers shared by all tests."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import asyncpg
import pytest
from hypothesis import settings
from sqlalchemy import URL, make_url
from xdist.scheduler import LoadScopeScheduling

import handler.main
from handler.warm.database import engine
from handler.warm.settings import Settings
from infra.database.roles import APP
from infra.local import ROOT
from infra.local.fleet import sandbox
from infra.local.pgbouncer import PgBouncer
from infra.local.private_directory import is_usable
from infra.local.signals import treat_sigterm_as_sigint
from infra.local.stack import DATABASE, Stack
from tests.network_namespace import pytest_runtest_protocol as pytest_runtest_protocol

# Reproducible examples without a time limit, so that a slow machine does not fail a test.
settings.register_profile("warm-engine", derandomize=True, deadline=None, database=None)
settings.load_profile("warm-engine")

if coverage_config := os.environ.get("COVERAGE_PROCESS_CONFIG"):
    # `make coverage`: a sandbox's environment is Lambda's, so coverage's variable is added to it.
    lambda_environment = sandbox._environment
    sandbox._environment = lambda *details: (
        lambda_environment(*details) | {"COVERAGE_PROCESS_CONFIG": coverage_config}
    )

if TYPE_CHECKING:
    PgConnection = asyncpg.Connection[Any]
else:
    PgConnection = asyncpg.Connection  # it has no type parameters at run time

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


#: A folder in memory, with more space than the stacks of all workers need.
MEMORY, MEMORY_BYTES = Path("/dev/shm"), 4 * 2**30


def pytest_configure() -> None:
    """Keep the servers' files in memory if possible: initdb needs half of the CPU time there."""
    if "TMPDIR" not in os.environ and MEMORY.is_dir() and is_usable(MEMORY, MEMORY_BYTES):
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # for `tmp_path`
        os.environ["TMPDIR"], tempfile.tempdir = str(MEMORY), None


def pytest_sessionstart() -> None:
    treat_sigterm_as_sigint()  # so that fixtures stop what they started


def pytest_xdist_auto_num_workers() -> int:
    """Return one worker more than there are processors, because most tests wait."""
    return (os.cpu_count() or 1) + 1


class ComposeScheduling(LoadScopeScheduling):  # type: ignore[misc]  # no type hints
    """Run all Compose tests on one worker, which owns the stack, and the others anywhere."""

    def _split_scope(self, nodeid: str) -> str:
        return "compose" if "/test_compose" in nodeid else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ComposeScheduling:
    return ComposeScheduling(config, log)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Share one stack among all tests, which must not change its schema or servers."""
    with Stack() as stack:
        yield stack


class CopiedStack(Stack):
    """A stack with a copy of the database of a stopped one, which takes a third of the CPU time of
    a new database."""

    def __init__(self, original: Stack) -> None:
        super().__init__()
        self._original = original.postgres
        self._passwords = dict(original._passwords)

    def _create_database(self) -> None:
        self.postgres.password = self._original.password
        subprocess.run(["cp", "-a", self._original.data, self.postgres.data], check=True)
        self.postgres.write_configuration()
        self.postgres.start()


@pytest.fixture(scope="session")
def stopped_stack() -> Iterator[Stack]:
    with Stack() as stack:
        stack.pgbouncer.stop()
        stack.postgres.stop()
        yield stack


@pytest.fixture
def own_stack(stopped_stack: Stack) -> Iterator[Stack]:
    """Start a stack for a test that changes the schema, a role or a server."""
    with CopiedStack(stopped_stack) as stack:
        yield stack


@asynccontextmanager
async def administrator(stack: Stack) -> AsyncIterator[PgConnection]:
    connection = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def admin(stack: Stack) -> AsyncIterator[PgConnection]:
    async with administrator(stack) as connection:
        yield connection


@pytest.fixture
async def locker(stack: Stack) -> AsyncIterator[PgConnection]:
    """Open a second administrator connection, to hold locks that queries wait for."""
    async with administrator(stack) as connection:
        yield connection


@pytest.fixture
async def own_admin(own_stack: Stack) -> AsyncIterator[PgConnection]:
    async with administrator(own_stack) as connection:
        yield connection


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Start moto's server, point boto3 at it with dummy credentials, and return its URL."""
    from moto.server import ThreadedMotoServer  # takes a second

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    for name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        monkeypatch.setenv(name, "eu-central-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    # moto keeps its state for the whole process.
    urllib.request.urlopen(f"{address}/moto-api/reset", b"").close()
    yield address
    server.stop()


Lambda = Callable[[Any], dict[str, Any]]


@pytest.fixture
def lambda_handler(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambda]:
    """Import the handler in this process and invoke it through the shared stack."""
    set_environment(monkeypatch, stack.environment())
    with ColdHandler() as invoke:
        yield invoke


@pytest.fixture
def own_stack_handler(own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambda]:
    """Import the handler in this process and invoke it through the test's own stack."""
    set_environment(monkeypatch, own_stack.environment())
    with ColdHandler() as invoke:
        yield invoke


class ColdHandler:
    """Import the handler again with the current environment: `with ColdHandler() as invoke`.

    It runs in its own thread, where no test has an event loop.
    """

    def __enter__(self) -> Self:
        reset_engine_cache()
        self._thread = ThreadPoolExecutor(1)
        self._handler = self._thread.submit(importlib.reload, handler.main).result().handler
        return self

    def __exit__(self, *_: object) -> None:
        for work in (engine.dispose, wait_for_transports_closed):
            self.run(work)
        self._thread.submit(self._handler.loop.close).result()
        self._thread.shutdown()

    def __call__(self, event: Any) -> dict[str, Any]:
        return self.begin(event).result()

    def begin(self, event: Any, context: Any = None) -> "Future[dict[str, Any]]":
        """Start an invocation and return the future of its response."""
        return self._thread.submit(self._handler, event, context)

    def run(self, work: Callable[[], Any]) -> Any:
        """Run `work` on the handler's event loop."""
        return self._thread.submit(self._handler.loop.run, work).result()


def set_environment(monkeypatch: pytest.MonkeyPatch, variables: Mapping[str, str]) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


def reset_engine_cache() -> None:
    engine.get_engine.cache_clear()


def psycopg_url(settings: Settings, **query: str) -> URL:
    """Build the URL for a separate synchronous engine."""
    return make_url("postgresql+psycopg://").set(
        host=settings.host,
        port=settings.port,
        username=settings.user,
        password=settings.password.get_secret_value(),
        database=settings.name,
        query=query,
    )


async def wait_for_transports_closed() -> None:
    """Wait until the loop watches no socket except its own.

    asyncpg leaves the TLS connection of a rejected login to the loop. Ending the loop before it is
    closed would raise a ResourceWarning in another test.
    """
    watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]  # there is no public API
    async with asyncio.timeout(30):
        while len(watched) > 1:
            await asyncio.sleep(0.005)


def eventually(condition: Callable[[], Any], seconds: float = 30.0) -> Any:
    """Return the first true value of `condition`; fail if there is none in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
    return value


async def wait_for_queries(admin: PgConnection, count: int, seconds: float = 3.0) -> None:
    """Wait until the application runs `count` queries. `admin` must not be in a transaction."""
    active = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1 AND state = 'active'"
    async with asyncio.timeout(seconds):
        while await admin.fetchval(active, APP) != count:
            await asyncio.sleep(0.01)


def app_clients(bouncer: PgBouncer) -> list[dict[str, Any]]:
    """Return the rows of the application's clients in `SHOW CLIENTS`."""
    return [row for row in bouncer.show("CLIENTS") if row["user"] == APP]


def log_lines(text: str) -> list[dict[str, Any]]:
    """Parse the handler's log lines out of mixed output."""
    return [json.loads(line) for line in text.splitlines() if '"coldStart": ' in line]


def command(
    *words: str, env: dict[str, str] | None = None, cwd: Path = ROOT, **options: Any
) -> "subprocess.Popen[str]":
    """Start a command of the project as a user does, with stdout and stderr in one pipe."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **options,
    )


def run(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Run a command of the project and return its exit status and output."""
    process = command(*words, env=env)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output
