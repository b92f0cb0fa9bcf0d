"""Caller input is escaped in every log line, in text and JSON format."""

import json
from pathlib import Path

import pytest

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.events import http_api

FORGED = '\n{"outcome": "ok", "forged": 1}\r\n[ERROR] forged\u2028\x1b[2J'


@pytest.mark.parametrize("level", ["DEBUG", "INFO"])
@pytest.mark.parametrize("log_format", ["JSON", "Text"])
async def test_caller_input_cannot_start_a_new_log_line(
    stack: Stack, tmp_path: Path, log_format: str, level: str
) -> None:
    """The input is in the path, the query, a header, the key, the body and the method."""
    logging = {"AWS_LAMBDA_LOG_FORMAT": log_format, "AWS_LAMBDA_LOG_LEVEL": level}
    body = json.dumps({"customer_name": FORGED, "status": FORGED})
    events = [
        http_api("GET", f"/orders/{FORGED}"),
        http_api("GET", "/orders", f"status={FORGED}"),
        http_api("GET", "/orders/1", x_log_sql=FORGED, x_forwarded_for=FORGED, host=FORGED),
        http_api("POST", "/orders", body=body, idempotency_key="forged"),
        http_api("POST", "/orders", body=body, idempotency_key=FORGED),
        http_api(f"GET{FORGED}", "/orders/1"),
        {**http_api("GET", "/orders/1"), "rawPath": FORGED, "cookies": [FORGED]},
    ]
    async with Fleet(stack.environment() | logging, logs=tmp_path) as fleet:
        for event in events:
            await fleet.invoke(event)
    text = (tmp_path / "sandbox-1.log").read_text()
    assert text
    assert "\x1b" not in text
    assert "\u2028" not in text
    forged_starts = ('{"outcome": "ok", "forged"', "[ERROR] forged")
    assert not [line for line in text.splitlines() if line.strip().startswith(forged_starts)]
