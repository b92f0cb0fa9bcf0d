"""Each invocation is one JSON line, which tells an operator what it cost and what went wrong."""

import json
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from infra.local.fleet import Fleet
from infra.local.stack import DATABASE, Stack
from tests.conftest import Lambda, cold_runtime, log_lines
from tests.events import http_api

READ = http_api("GET", "/orders/1")


async def test_cold_and_warm_invocations_say_what_they_cost(stack: Stack, tmp_path: Path) -> None:
    async with Fleet(stack.environment(), logs=tmp_path) as fleet:
        answers = [await fleet.invoke(READ) for _ in range(3)]
    cold, *warm = log_lines((tmp_path / "sandbox-1.log").read_text())
    assert [line["request_id"] for line in (cold, *warm)] == [each.request_id for each in answers]
    assert cold["cold_start"]
    assert cold["connect_ms"] > 0
    assert cold["connect_ms"] + cold["query_ms"] < cold["duration_ms"]
    for line in warm:
        assert not line["cold_start"]
        assert line["connect_ms"] == 0
    for line in (cold, *warm):
        assert (line["outcome"], line["status"], line["attempts"]) == ("ok", 200, 1)
        assert 0 < line["query_ms"] < line["duration_ms"]


@pytest.mark.parametrize(
    ("event", "outcome", "status", "attempts"),
    [
        (http_api("GET", "/orders/999999"), "refused", 404, 1),
        (http_api("GET", "/orders/0"), "refused", 422, 0),
        (http_api("GET", "/health"), "ok", 200, 0),
    ],
)
def test_the_line_says_how_it_went(
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
    assert "fault" not in line


def test_a_failure_is_said_with_its_code_and_the_way_out(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in (own_stack.environment() | {"DB_PASS": "hunter2"}).items():
        monkeypatch.setenv(name, value)
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 503
    printed = capsys.readouterr()
    [line] = log_lines(printed.out)
    assert line["outcome"] == "failed"
    assert line["fault"] == "authentication failed"
    assert line["sqlstate"] == "08P01"
    assert "DB_PASS" in line["remedy"]
    assert "hunter2" not in printed.out + printed.err


async def test_what_a_customer_sent_is_in_no_log(stack: Stack, tmp_path: Path) -> None:
    """Not where a value is refused by the driver either, whose message quotes it."""
    body = json.dumps({"customer_name": "Olive Oils", "status": "secret"})
    function = "tests.runtime.functions.unbounded"
    async with Fleet(stack.environment(), handler=function, logs=tmp_path) as fleet:
        written = await fleet.invoke(http_api("POST", "/orders", body=body, idempotency_key="log"))
        assert written.payload["statusCode"] == 201
        bad = await fleet.invoke(http_api("GET", "/orders/2"))
        assert bad.payload["statusCode"] == 500
    log = (tmp_path / "sandbox-1.log").read_text()
    assert log_lines(log)[-1]["sqlstate"] == "22000"
    for sent in ("Olive Oils", "secret", "98765432100"):
        assert sent not in log


async def test_an_invocation_out_of_time_is_late(stack: Stack, tmp_path: Path) -> None:
    locker = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    async with Fleet(stack.environment(), timeout=1, logs=tmp_path) as fleet:
        await fleet.invoke(READ)
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            await fleet.invoke(READ)
    await locker.close()
    line = log_lines((tmp_path / "sandbox-1.log").read_text())[-1]
    assert (line["outcome"], line["status"]) == ("late", 504)
