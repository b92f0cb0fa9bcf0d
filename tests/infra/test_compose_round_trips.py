"""What an order costs on the way, through the image's PgBouncer: 1.24, tracking names or not."""

import json

import pytest

from tests.infra.conftest import ON_COMPOSE, ComposeStack

pytestmark = ON_COMPOSE

#: The handler in a container of the laboratory, a relay between it and PgBouncer: the round trips
#: of a cold read and of two warm ones.
COUNT = """
import contextlib, json, os, sys
from pathlib import Path
from infra.local.fleet.front_door import api_gateway_event
from infra.local.wire import Relay

with Relay(os.environ["DB_HOST"], int(os.environ["DB_PORT"]), delay=0.1) as relay:
    # Another name than the certificate's, and its CA all the same.
    os.environ |= {"DB_HOST": relay.host, "DB_PORT": str(relay.port), "DB_SSLMODE": "verify-ca"}
    os.environ["DB_PASS"] = Path("/run/secrets/app-password").read_text()
    from handler.main import handler
    counts = []
    for order_id in (1, 2, 999):
        relay.reset()
        with contextlib.redirect_stdout(sys.stderr):
            answer = handler(api_gateway_event("GET", f"/orders/{order_id}"), None)
        assert answer["statusCode"] == 200, answer
        counts.append(relay.round_trips)
print(json.dumps(counts))
"""


@pytest.mark.parametrize("tracked", [0, 200])
async def test_an_order_is_seven_round_trips_cold_with_tls_and_one_warm(
    compose: ComposeStack, tracked: int
) -> None:
    assert compose.show("VERSION")[0]["version"] >= "PgBouncer 1.24"
    python = ("--entrypoint", "/opt/venv/bin/python", "churn", "-c", COUNT)
    compose.console(f"SET max_prepared_statements = {tracked}")
    try:
        said = compose("--profile", "churn", "run", "--rm", "--no-deps", "--no-TTY", *python)
    finally:
        compose.console("RELOAD")  # as the ini has it
    assert json.loads(said.splitlines()[-1]) == [7, 1, 1], said
