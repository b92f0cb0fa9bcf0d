"""What tests share: one stack for the session, and named waits instead of sleeps."""

import asyncio
import importlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import settings
from sqlalchemy import URL, make_url
from xdist.scheduler import LoadScopeScheduling

import handler.engine
import handler.main
from handler.settings import Settings
from infra.local import ROOT
from infra.local.interruption import take_sigterm_as_ctrl_c
from infra.local.stack import DATABASE, Stack

# The same examples in each run and on each machine, in whatever time those take.
settings.register_profile("warm-engine", derandomize=True, deadline=None, database=None)
settings.load_profile("warm-engine")

needs_root = pytest.mark.skipif(os.getuid() != 0, reason="needs root")


def pytest_sessionstart() -> None:
    take_sigterm_as_ctrl_c()  # so that fixtures end what they started


def pytest_xdist_auto_num_workers() -> int:
    """`-n auto`: most tests wait, so one worker more than there are processors is faster."""
    return (os.cpu_count() or 1) + 1


class OneCompose(LoadScopeScheduling):  # type: ignore[misc]  # has no types
    """Any test to any worker, but those on Compose to one: they share a stack."""

    def _split_scope(self, nodeid: str) -> str:
        return "compose" if "/test_compose" in nodeid else nodeid


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> OneCompose:
    return OneCompose(config, log)


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """Shared by all: leave the schema and the servers as they are."""
    with Stack() as stack:
        yield stack


@pytest.fixture
def own_stack() -> Iterator[Stack]:
    """For a test that changes the schema, a role or a server."""
    with Stack() as stack:
        yield stack


@asynccontextmanager
async def administrator(stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    connection = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        yield connection
    finally:
        await connection.close()


@pytest.fixture
async def admin(stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    async with administrator(stack) as connection:
        yield connection


@pytest.fixture
async def locker(stack: Stack) -> AsyncIterator["asyncpg.Connection[Any]"]:
    """A second administrator, to hold locks that queries wait for."""
    async with administrator(stack) as connection:
        yield connection


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An AWS on this machine: moto's server, which stores what it is told and runs nothing. Its
    address, which boto3 then uses for every service, with an account of nobody's."""
    from moto.server import ThreadedMotoServer  # a second to import

    server = ThreadedMotoServer("127.0.0.1", 0)
    server.start()
    host, port = server.get_host_and_port()
    address = f"http://{host}:{port}"
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    # What it stores is the process's, and would be another test's, too.
    urllib.request.urlopen(f"{address}/moto-api/reset", b"").close()  # noqa: S310  # ours
    yield address
    server.stop()


Lambda = Callable[[Any], dict[str, Any]]


@pytest.fixture
def lambda_handler(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambda]:
    """`handler.main.handler` as a cold runtime has it, in this process, through the stack."""
    for name, value in stack.environment().items():
        monkeypatch.setenv(name, value)
    with cold_runtime() as invoke:
        yield invoke


@pytest.fixture
def own_stack_handler(own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lambda]:
    """The same, through a stack that no other test writes to."""
    for name, value in own_stack.environment().items():
        monkeypatch.setenv(name, value)
    with cold_runtime() as invoke:
        yield invoke


class cold_runtime:  # noqa: N801  # reads as a context manager
    """The handler freshly imported, with the environment as it is now; on a thread of its own, in
    which no loop of the test's runs."""

    def __enter__(self) -> Lambda:
        forget_engine()
        self.thread = ThreadPoolExecutor(1)
        self.main = self.thread.submit(importlib.reload, handler.main).result()
        return lambda event: self.thread.submit(self.main.handler, event, None).result()

    def __exit__(self, *_: object) -> None:
        for work in (handler.engine.dispose, let_go):
            self.thread.submit(self.main._loop.run, work).result()
        self.thread.submit(self.main._loop.close).result()
        self.thread.shutdown()


def forget_engine() -> None:
    handler.engine.engine.cache_clear()


def psycopg_url(settings: Settings, **query: str) -> URL:
    """Where a synchronous engine of its own goes."""
    return make_url("postgresql+psycopg://").set(
        host=settings.host,
        port=settings.port,
        username=settings.user,
        password=settings.password.get_secret_value(),
        database=settings.name,
        query=query,
    )


async def let_go() -> None:
    """Until the loop watches no socket but its own. asyncpg leaves the TLS of a login that was
    refused to the loop, which closes it when the server has: a loop that ended first would leave it
    to another test as a warning."""
    watched = asyncio.get_running_loop()._selector.get_map()  # type: ignore[attr-defined]  # no public way
    async with asyncio.timeout(10):
        while len(watched) > 1:  # noqa: ASYNC110  # it rings no bell
            await asyncio.sleep(0.005)


def eventually(condition: Callable[[], Any], seconds: float = 10.0) -> Any:
    """The first true value of `condition`; fails where none comes in time."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, f"not within {seconds} s: {condition}"
        time.sleep(0.02)
    return value


def log_lines(text: str) -> list[dict[str, Any]]:
    """What the handler said of its invocations, among whatever else was printed."""
    return [json.loads(line) for line in text.splitlines() if '"cold_start": ' in line]


def command(
    *words: str, env: dict[str, str] | None = None, cwd: Path = ROOT, **more: Any
) -> "subprocess.Popen[str]":
    """A command of the project as a user starts it, its output in one pipe."""
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **more,
    )


def run(*words: str, env: dict[str, str] | None = None) -> tuple[int, str]:
    """Exit code and output of a command of the project."""
    process = command(*words, env=env)
    output, _ = process.communicate(timeout=60)
    return process.returncode, output
