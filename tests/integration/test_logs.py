"""Each invocation writes one JSON line with its cost and its outcome."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import ColdHandler, Lambda, PgConnection, log_lines, set_environment
from tests.events import http_api

READ = http_api("GET", "/orders/1")


async def test_cold_and_warm_invocations_log_their_durations(stack: Stack, tmp_path: Path) -> None:
    async with Fleet(stack.environment(), logs=tmp_path) as fleet:
        results = [await fleet.invoke(READ) for _ in range(3)]
    cold, *warm = log_lines((tmp_path / "sandbox-1.log").read_text())
    request_ids = [result.request_id for result in results]
    assert [line["requestId"] for line in (cold, *warm)] == request_ids
    assert cold["coldStart"]
    assert cold["connectMs"] > 0
    assert cold["connectMs"] + cold["queryMs"] < cold["durationMs"]
    for line in warm:
        assert not line["coldStart"]
        assert line["connectMs"] == 0
    for line in (cold, *warm):
        assert (line["outcome"], line["status"], line["attempts"]) == ("ok", 200, 1)
        assert 0 < line["queryMs"] < line["durationMs"]


@pytest.mark.parametrize(
    ("event", "outcome", "status", "attempts"),
    [
        (http_api("GET", "/orders/999999"), "refused", 404, 1),
        (http_api("GET", "/orders/0"), "refused", 422, 0),
        (http_api("GET", "/health"), "ok", 200, 0),
    ],
)
def test_the_log_line_has_the_outcome(
    lambda_handler: Lambda,
    capsys: pytest.CaptureFixture[str],
    event: dict[str, Any],
    outcome: str,
    status: int,
    attempts: int,
) -> None:
    lambda_handler(event)
    [line] = log_lines(capsys.readouterr().out)
    assert (line["outcome"], line["status"], line["attempts"]) == (outcome, status, attempts)
    assert "cause" not in line


def test_a_failure_is_logged_with_its_code_and_a_hint(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, own_stack.environment() | {"DB_PASS": "hunter2"})
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 503
    output = capsys.readouterr()
    [line] = log_lines(output.out)
    assert line["outcome"] == "failed"
    assert line["cause"] == "authentication failed"
    assert line["sqlstate"] == "08P01"
    assert "DB_PASS" in line["hint"]
    assert "hunter2" not in output.out + output.err


async def test_customer_data_is_never_logged(stack: Stack, tmp_path: Path) -> None:
    """This includes a value that the driver rejects, although its error message quotes it."""
    body = json.dumps({"customer_name": "Olive Oils", "status": "secret"})
    function = "tests.runtime.functions.unbounded"
    async with Fleet(stack.environment(), handler=function, logs=tmp_path) as fleet:
        created = await fleet.invoke(http_api("POST", "/orders", body=body, idempotency_key="log"))
        assert created.payload["statusCode"] == 201
        assert (await fleet.invoke(http_api("GET", "/orders/2"))).payload["statusCode"] == 500
    log = (tmp_path / "sandbox-1.log").read_text()
    assert log_lines(log)[-1]["sqlstate"] == "22000"
    for value in ("Olive Oils", "secret", "98765432100"):
        assert value not in log


async def test_an_invocation_past_its_deadline_is_marked(
    stack: Stack, tmp_path: Path, locker: PgConnection
) -> None:
    async with Fleet(stack.environment(), timeout=1, logs=tmp_path) as fleet:
        await fleet.invoke(READ)
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            await fleet.invoke(READ)
    line = log_lines((tmp_path / "sandbox-1.log").read_text())[-1]
    assert (line["outcome"], line["status"]) == ("late", 504)
