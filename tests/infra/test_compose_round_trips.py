"""Round trips through the image's PgBouncer 1.24, with and without prepared statement support."""

import json

import pytest

from tests.infra.conftest import ON_COMPOSE, ComposeStack

pytestmark = ON_COMPOSE

#: Runs the handler in a container of the lab, with a proxy in front of PgBouncer, and prints the
#: round trips of one cold and two warm reads.
COUNT = """
import contextlib, json, os, sys
from pathlib import Path
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.tcp_proxy import TcpProxy

with TcpProxy(os.environ["DB_HOST"], int(os.environ["DB_PORT"]), delay=0.1) as proxy:
    # The certificate has another name but is from the same CA.
    os.environ |= {"DB_HOST": proxy.host, "DB_PORT": str(proxy.port), "DB_SSLMODE": "verify-ca"}
    os.environ["DB_PASS"] = Path("/run/secrets/app-password").read_text()
    from handler.main import handler
    counts = []
    for order_id in (1, 2, 999):
        proxy.reset_counters()
        with contextlib.redirect_stdout(sys.stderr):
            response = handler(api_gateway_event("GET", f"/orders/{order_id}"), None)
        assert response["statusCode"] == 200, response
        counts.append(proxy.round_trips)
print(json.dumps(counts))
"""


@pytest.mark.parametrize("max_prepared_statements", [0, 200])
async def test_a_read_takes_seven_round_trips_cold_with_tls_and_one_warm(
    compose: ComposeStack, max_prepared_statements: int
) -> None:
    assert compose.show("VERSION")[0]["version"] >= "PgBouncer 1.24"
    python = ("--entrypoint", "/opt/venv/bin/python", "churn", "-c", COUNT)
    compose.console(f"SET max_prepared_statements = {max_prepared_statements}")
    try:
        output = compose("--profile", "churn", "run", "--rm", "--no-deps", "--no-TTY", *python)
    finally:
        compose.console("RELOAD")  # as in the ini file
    assert json.loads(output.splitlines()[-1]) == [7, 1, 1], output
