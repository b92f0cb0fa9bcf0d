"""Fixtures shared by several integration tests."""

import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme

from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import CopiedStack, PgConnection, administrator
from tests.integration.failing_fleet import READ, FailingFleet, LoggedFleet, outcome


@pytest.fixture(scope="module")
def module_stack(stopped_stack: Stack) -> Iterator[Stack]:
    """Share one stack among the tests of a module, which may change its schema and roles."""
    with CopiedStack(stopped_stack) as stack:
        yield stack


@pytest.fixture
async def module_admin(module_stack: Stack) -> AsyncIterator[PgConnection]:
    async with administrator(module_stack) as connection:
        yield connection


@pytest.fixture
async def failing_fleet(
    request: pytest.FixtureRequest, stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> AsyncIterator[FailingFleet]:
    """Start a fleet that a test can disturb, and check at the end that it recovers.

    The parameter is a dictionary of PgBouncer's settings and the handler's (`DB_*`).
    """
    parameters = getattr(request, "param", {})
    settings = {name: value for name, value in parameters.items() if not name.startswith("DB_")}
    variables = {name: value for name, value in parameters.items() if name.startswith("DB_")}
    with (
        stack.another_pgbouncer(settings=settings) as bouncer,
        TcpProxy(bouncer.host, bouncer.port) as proxy,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(proxy.port)} | variables
        async with LoggedFleet(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (200, None)
            yield FailingFleet(fleet, bouncer, proxy, admin, locker)
            assert await fleet.recovers()


@pytest.fixture
def server_tls(tmp_path: Path) -> ssl.SSLContext:
    """Create a server's TLS context; its CA's certificate is in `tmp_path / "ca.pem"`."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    ca.issue_cert("127.0.0.1").configure_cert(context)
    return context


@contextmanager
def stack_folder(
    mode: int, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Create stacks in a new folder with a short path and this mode, and yield the folder."""
    tmp_path_factory.getbasetemp()  # creates pytest's own folder before TMPDIR changes
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        Path(folder).chmod(mode)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
