"""The log line matches its schema, carries CloudWatch metrics and cannot be forged."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import jsonschema
import pytest

from handler.warm import errors, log_line, request_policy
from handler.warm.settings import SettingsError, load_settings
from infra.local import ROOT
from infra.local.fleet import Fleet, InvocationResult
from infra.local.stack import Stack
from tests.conftest import ColdHandler, Lambda, log_lines, set_environment
from tests.events import http_api, rest_api

READ = http_api("GET", "/orders/1")
SCHEDULE = {"source": "aws.scheduler"}
LINE_SCHEMA = json.loads((ROOT / "docs/log-line.schema.json").read_text())
EMF_SCHEMA = json.loads(Path(__file__).with_name("emf.schema.json").read_text())
JSON_FORMAT = {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "INFO"}
#: The levels that Lambda's filter at WARN passes; a JSON line without `level` counts as INFO.
#: Source: "Log-level filtering", AWS Lambda Developer Guide.
LEVELS_AT_WARN = {"WARN", "WARNING", "ERROR", "FATAL", "CRITICAL"}
EVENTS: list[tuple[Any, str, str, dict[str, Any]]] = [
    (READ, "INFO", "ok", {"route": "/orders/{order_id}", "status": 200, "attempts": 1}),
    (SCHEDULE, "INFO", "ok", {"attempts": 1}),
    (http_api("GET", "/orders/x"), "WARN", "refused", {"route": "/orders/{order_id}"}),
    (http_api("GET", "/nothing"), "WARN", "refused", {"route": "unmatched", "status": 404}),
    (http_api("PUT", "/health"), "WARN", "refused", {"route": "/health", "status": 405}),
    (rest_api("GET", "/health"), "INFO", "ok", {"route": "/health", "attempts": 0}),
    ({"requestContext": {}}, "WARN", "refused", {"failure": "event", "status": 400}),
    ({"Records": [{"eventSource": "aws:sqs"}]}, "ERROR", "failed", {"failure": "event"}),
]


def check(line: dict[str, Any]) -> None:
    """Validate a line against its schema, and its metrics against CloudWatch's schema."""
    jsonschema.validate(line, LINE_SCHEMA)
    if "_aws" not in line:
        return
    jsonschema.validate(line, EMF_SCHEMA)
    for directive in line["_aws"]["CloudWatchMetrics"]:
        for metric in directive["Metrics"]:
            assert isinstance(line[metric["Name"]], int | float), metric
        for dimension in {name for names in directive["Dimensions"] for name in names}:
            assert isinstance(line[dimension], str), dimension
            assert 0 < len(line[dimension]) <= 1024


def metrics(line: dict[str, Any]) -> set[tuple[str, str, frozenset[tuple[str, str]]]]:
    """Return the namespace, name and dimensions of each metric in a line."""
    return {
        (directive["Namespace"], metric["Name"], frozenset((name, line[name]) for name in names))
        for directive in line["_aws"]["CloudWatchMetrics"]
        for metric in directive["Metrics"]
        for names in directive["Dimensions"]
    }


async def invoke_all(
    environment: dict[str, str], events: list[Any], folder: Path
) -> tuple[list[InvocationResult], list[str]]:
    """Send all events to one new sandbox; return the results and the lines of its log."""
    async with Fleet(environment, logs=folder) as fleet:
        results = [await fleet.invoke(event) for event in events]
    return results, (folder / "sandbox-1.log").read_text().splitlines()


async def test_each_event_writes_one_line_matching_the_schema(stack: Stack, tmp_path: Path) -> None:
    events = [event for event, *_ in EVENTS]
    results, output = await invoke_all(stack.environment() | JSON_FORMAT, events, tmp_path)
    lines = log_lines("\n".join(output))
    assert len(lines) == len(EVENTS)
    for line, result, (event, level, outcome, fields) in zip(lines, results, EVENTS, strict=True):
        check(line)
        assert (line["level"], line["outcome"]) == (level, outcome), line
        assert line | fields == line
        assert line["requestId"] == result.request_id
        assert line["traceId"].startswith("1-")
        assert line.get("apiRequestId") == event.get("requestContext", {}).get("requestId")
        assert "caller" not in line


async def test_a_normal_request_logs_exactly_one_line_in_json_format(
    stack: Stack, tmp_path: Path
) -> None:
    _, output = await invoke_all(stack.environment() | JSON_FORMAT, [READ] * 5, tmp_path)
    assert len(output) == 5
    assert [json.loads(line)["coldStart"] for line in output] == [True] + [False] * 4


async def test_at_level_warn_every_failure_is_logged(stack: Stack, tmp_path: Path) -> None:
    log_settings = {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "WARN"}
    events = [READ, http_api("GET", "/health"), {"Records": [{"eventSource": "aws:sqs"}]}]
    environment = stack.environment() | {"DB_PASS": "wrong"} | log_settings
    _, output = await invoke_all(environment, events, tmp_path)
    passed_lines = [
        line for line in output if json.loads(line).get("level", "INFO") in LEVELS_AT_WARN
    ]
    lines = log_lines("\n".join(passed_lines))
    assert [(line["failure"], line["level"]) for line in lines] == [
        ("authentication", "ERROR"),
        ("event", "ERROR"),
    ]


async def test_a_warning_has_the_failure_fields_of_the_log_line(
    stack: Stack, tmp_path: Path
) -> None:
    environment = stack.environment() | JSON_FORMAT | {"DB_PASS": "wrong", "DB_PREWARM": "on"}
    _, output = await invoke_all(environment, [http_api("GET", "/health")], tmp_path)
    warning = json.loads(next(line for line in output if "pre-warm" in line))
    [line] = log_lines("\n".join(output))
    assert warning["level"] in LEVELS_AT_WARN
    assert warning["failure"] == "authentication"
    shared = {name: value for name, value in warning.items() if name in LINE_SCHEMA["properties"]}
    assert {"timestamp", "level", "failure", "cause", "hint", "sqlstate"} <= shared.keys()
    assert line["level"] == "INFO"


def test_the_documented_failure_names_match_the_policy_table() -> None:
    documented = LINE_SCHEMA["properties"]["failure"]["enum"]
    assert sorted(documented) == sorted(get_args(errors.FailureName))
    outside_the_table = {"app", "background", "deadline", "event", "shutdown"}
    assert {name for name, *_ in request_policy._TABLE} | outside_the_table == set(documented)


# --- Metrics -------------------------------------------------------------------------------------


async def test_cold_and_warm_reads_emit_metrics(stack: Stack, tmp_path: Path) -> None:
    _, output = await invoke_all(stack.environment(), [READ, READ], tmp_path)
    cold, warm = log_lines("\n".join(output))
    names = {name for _, name, _ in metrics(cold)}
    assert names == {
        *("connections", "coldStarts", "retries", "failures"),
        *("durationMs", "connectMs", "queryMs"),
    }
    assert names - {name for _, name, _ in metrics(warm)} == {"connectMs"}
    assert (cold["coldStarts"], cold["connections"]) == (1, 1)
    assert (warm["coldStarts"], warm["connections"], warm["failures"]) == (0, 0, 0)
    expected_dimensions = {
        "": {("function", "warm-engine")},
        "version": {("function", "warm-engine"), ("version", "$LATEST")},
        "route": {("function", "warm-engine"), ("route", "/orders/{order_id}")},
    }
    for group, dimensions in expected_dimensions.items():
        names_of_group = {name for _, name, actual in metrics(cold) if actual == dimensions}
        assert names_of_group == ({"durationMs", "failures"} if group else names)
    assert {actual for _, _, actual in metrics(cold)} == set(
        map(frozenset, expected_dimensions.values())
    )


async def test_failures_are_counted_by_name(stack: Stack, tmp_path: Path) -> None:
    _, output = await invoke_all(stack.environment() | {"DB_PASS": "wrong"}, [READ], tmp_path)
    [line] = log_lines("\n".join(output))
    by_name = frozenset({("function", "warm-engine"), ("failure", "authentication")})
    assert ("WarmEngine", "failures", by_name) in metrics(line)
    assert line["failures"] == 1


def test_no_metrics_are_emitted_outside_lambda(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str]
) -> None:
    lambda_handler(READ)
    [line] = log_lines(capsys.readouterr().out)
    check(line)
    assert not {"_aws", "function", "coldStarts"} & line.keys()


def test_a_namespace_enables_metrics_outside_lambda(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_environment(monkeypatch, stack.environment() | {"AWS_EMF_NAMESPACE": "Shop/Orders"})
    with ColdHandler() as invoke:
        invoke(READ)
    [line] = log_lines(capsys.readouterr().out)
    check(line)
    assert {namespace for namespace, _, _ in metrics(line)} == {"Shop/Orders"}
    assert line["function"] == "local"


def test_an_invalid_namespace_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_EMF_NAMESPACE", 'x", "forged": "')
    with pytest.raises(SettingsError, match="AWS_EMF_NAMESPACE"):
        load_settings()


# --- Invalid input -------------------------------------------------------------------------------

FORGED = (
    '"}\n{"level": "ERROR", "coldStart": true, "_aws": {"CloudWatchMetrics": [{"Namespace": "x"}]}}'
)


@pytest.mark.parametrize("log_format", ["JSON", "Text"])
async def test_a_caller_cannot_forge_log_lines_or_metrics(
    stack: Stack, tmp_path: Path, log_format: str
) -> None:
    """The text is in the path, query, headers, body, method, request id, and event keys."""
    event_with_ids = http_api("GET", "/health")
    event_with_ids["requestContext"] |= {"requestId": FORGED, "routeKey": FORGED}
    body = json.dumps({"customer_name": FORGED, "status": FORGED})
    log_settings = {"AWS_LAMBDA_LOG_FORMAT": log_format, "AWS_LAMBDA_LOG_LEVEL": "DEBUG"}
    events = [
        http_api("GET", f"/{FORGED}"),
        http_api("GET", f"/orders/{FORGED}", f"status={FORGED}"),
        http_api("GET", "/health", x_amzn_trace_id=FORGED, host=FORGED),
        http_api("POST", "/orders", body=body, idempotency_key=FORGED),
        http_api(FORGED, "/health"),
        event_with_ids,
        {FORGED: FORGED, "source": FORGED, "detail-type": FORGED},
    ]
    _, output = await invoke_all(stack.environment() | log_settings, events, tmp_path)
    parsed = []
    for line in output:
        try:
            parsed.append(json.loads(line))
        except ValueError:
            continue
    handler_lines = [line for line in parsed if "_aws" in line or "coldStart" in line]
    assert len(handler_lines) == len(events)
    for line in handler_lines:
        check(line)
        assert {namespace for namespace, _, _ in metrics(line)} == {"WarmEngine"}
        routes = {"unmatched", "/orders/{order_id}", "/health", "/orders"}
        assert line.get("route") in {*routes, None}
        assert line.get("apiRequestId") != FORGED


def test_a_forged_trace_header_is_dropped_and_a_forged_caller_is_escaped(
    lambda_handler: Lambda, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", f"Root={FORGED};Parent={FORGED}")
    lambda_handler(http_api("GET", "/health"))
    [line] = log_lines(capsys.readouterr().out)
    assert "traceId" not in line

    def serve() -> dict[str, Any]:
        log_line.set_caller(f"{FORGED}\x7f\u2028" * 9)
        return {"statusCode": 200}

    log_line.invocation("request", serve)
    [output] = capsys.readouterr().out.splitlines()
    line = json.loads(output)
    check(line)
    assert line["caller"].startswith('"}\\n{"level"')
    assert "\x7f" not in output
    log_line.invocation("request", lambda: {"statusCode": 200})
    assert "caller" not in json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("log_format", ["JSON", "Text"])
async def test_a_broken_log_pipe_does_not_fail_an_invocation(
    stack: Stack, tmp_path: Path, log_format: str
) -> None:
    """The application's own log lines are covered too."""
    environment = stack.environment() | {"AWS_LAMBDA_LOG_FORMAT": log_format}
    function = "tests.runtime.functions.with_closed_log"
    events = [READ, http_api("GET", "/orders/2"), READ]
    async with Fleet(environment, handler=function, logs=tmp_path) as fleet:
        results = [await fleet.invoke(event) for event in events]
    assert [result.payload["statusCode"] for result in results] == [200] * 3
    assert len({result.pid for result in results}) == 1
    assert (tmp_path / "sandbox-1.log").read_text() == ""


def test_a_closed_log_stream_does_not_fail_an_invocation() -> None:
    script = (
        "import sys; from handler.warm import log_line; sys.stdout.close()\n"
        "assert log_line.invocation('1', lambda: {'statusCode': 200}) == {'statusCode': 200}"
    )
    process = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, env={**os.environ}, capture_output=True, text=True
    )
    assert (process.returncode, process.stderr) == (0, "")
