"""Whatever sends the event: HTTP is served, a schedule warms, anything else gets a clear answer."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests import events
from tests.conftest import Lambda, cold_runtime, log_lines

each_service = pytest.mark.parametrize("event", events.ALL, ids=lambda build: build.__name__)
Build = Callable[..., dict[str, Any]]


@each_service
def test_an_order_is_read_from_behind_every_service(lambda_handler: Lambda, event: Build) -> None:
    answer = lambda_handler(event("GET", "/orders/1"))
    assert answer["statusCode"] == 200
    assert json.loads(answer["body"])["id"] == 1
    assert not answer["isBase64Encoded"]


@each_service
def test_queries_and_bodies_come_through_every_service(
    lambda_handler: Lambda, event: Build
) -> None:
    listed = lambda_handler(event("GET", "/orders", "status=paid&limit=2"))
    assert [order["status"] for order in json.loads(listed["body"])["orders"]] == ["paid", "paid"]
    body = json.dumps({"customer_name": "Grün & Söhne"})
    key = str(uuid.uuid4())
    placed = lambda_handler(event("POST", "/orders", body=body, idempotency_key=key))
    assert placed["statusCode"] == 201
    assert json.loads(placed["body"])["customer_name"] == "Grün & Söhne"


@each_service
def test_a_failure_is_a_problem_with_the_request_s_id_behind_every_service(
    lambda_handler: Lambda, event: Build
) -> None:
    for path, status in (("/orders/999999", 404), ("/orders/0", 422), ("/nothing", 404)):
        answer = lambda_handler(event("GET", path))
        assert answer["statusCode"] == status
        body = json.loads(answer["body"])
        assert body["status"] == status
        assert body["request_id"]
        headers = answer.get("headers") or answer["multiValueHeaders"]
        assert "application/problem+json" in str(headers)


async def test_a_problem_carries_lambda_s_own_request_id(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        sent: list[Any] = [events.http_api("GET", "/orders/0"), {}, []]
        for event in sent:
            answer = await fleet.invoke(event)
            assert json.loads(answer.payload["body"])["request_id"] == answer.request_id


@pytest.mark.parametrize("source", ["aws.events", "aws.scheduler"])
def test_a_scheduled_ping_warms_the_connection_and_says_so(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    from handler import engine

    ping = {"source": source, "detail-type": "Scheduled Event", "detail": {}, "resources": []}
    assert lambda_handler(ping)["warm"] is True
    assert engine.engine().pool.checkedin() == 1  # type: ignore[attr-defined]  # a QueuePool has it
    [line] = log_lines(capsys.readouterr().out)
    assert line["outcome"] == "ok"


def test_a_ping_without_a_database_says_so_and_raises_nothing(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PORT", "1")
    with cold_runtime() as invoke:
        answer = invoke({"source": "aws.events"})
    assert answer["warm"] is False
    assert "cannot be reached" in answer["detail"]
    [line] = log_lines(capsys.readouterr().out)
    assert line["outcome"] == "failed"
    assert "cannot be reached" in line["fault"]


SQS = {"Records": [{"messageId": "1", "eventSource": "aws:sqs", "body": "secret"}]}


@pytest.mark.parametrize(
    "event",
    [
        {},
        [],
        None,
        "text",
        5,
        True,
        SQS,
        {"source": "aws.s3"},
        {"requestContext": None},
        {"requestContext": {}},
        {"requestContext": {"elb": {}}},
        {"requestContext": {}, "version": "2.0"},
        {"requestContext": {"http": {}}, "version": "2.0"},
        {"requestContext": {"stage": "prod", "http": None}, "version": "2.0"},
        {"requestContext": {}, "resource": "/"},
    ],
    ids=str,
)
def test_anything_else_gets_one_line_in_the_log_and_a_clear_result(
    lambda_handler: Lambda,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    event: Any,
) -> None:
    answer = lambda_handler(event)
    assert answer["statusCode"] == 400
    assert json.loads(answer["body"])["detail"].startswith("This function was sent an ")
    printed = capsys.readouterr().out
    [line] = log_lines(printed)
    assert line["outcome"] == "refused"
    assert line["fault"].startswith("an ")
    assert "secret" not in printed
    assert not caplog.records


def test_no_schema_is_built_before_somebody_asks(lambda_handler: Lambda) -> None:
    from handler.app import app

    app.openapi_schema = None
    lambda_handler(events.http_api("GET", "/orders/1"))
    assert app.openapi_schema is None
    schema = json.loads(lambda_handler(events.http_api("GET", "/openapi.json"))["body"])
    described = schema["paths"]["/orders"]["post"]["responses"]
    assert set(described) == {"201", "400", "409", "413", "422", "500", "503", "504"}
    for status in set(described) - {"201"}:
        assert list(described[status]["content"]) == ["application/problem+json"]
    key = schema["paths"]["/orders"]["post"]["parameters"][0]
    assert (key["name"], key["in"], key["required"]) == ("idempotency-key", "header", True)


@pytest.mark.parametrize("bug", [ZeroDivisionError, TimeoutError])
def test_a_bug_is_a_problem_too_and_tells_nothing(
    lambda_handler: Lambda,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    bug: type[Exception],
) -> None:
    from handler import orders

    async def broken(order_id: int) -> None:
        raise bug("secret")

    monkeypatch.setattr(orders, "find", broken)
    answer = lambda_handler(events.http_api("GET", "/orders/1"))
    assert answer["statusCode"] == 500
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert "secret" not in answer["body"]
    [line] = log_lines(capsys.readouterr().out)
    assert (line["outcome"], line["fault"]) == ("failed", bug.__name__)
    assert bug.__name__ in caplog.text  # for the operator, with its trace
