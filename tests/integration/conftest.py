"""What the tests of failures share."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.integration.failing import READ, Failing, Logged, outcome


@pytest.fixture
async def failing(
    request: pytest.FixtureRequest, stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> AsyncIterator[Failing]:
    """Its parameters: settings of PgBouncer, and of the handler (`DB_*`)."""
    given = getattr(request, "param", {})
    settings = {name: value for name, value in given.items() if not name.startswith("DB_")}
    of_handler = {name: value for name, value in given.items() if name.startswith("DB_")}
    with (
        stack.another_pgbouncer(settings=settings) as bouncer,
        Relay(bouncer.host, bouncer.port) as relay,
    ):
        environment = stack.environment(bouncer) | {"DB_PORT": str(relay.port)} | of_handler
        async with Logged(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (200, None)
            yield Failing(fleet, bouncer, relay, admin, locker)
            assert await fleet.is_well()
