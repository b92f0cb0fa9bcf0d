"""Fixtures shared by several integration tests."""

import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.integration.failing_fleet import READ, FailingFleet, LoggedFleet, outcome


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
