"""HTTP events are served, scheduled events open the connection, and other events fail."""

import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests import events
from tests.conftest import ColdHandler, Lambda, log_lines

each_event_format = pytest.mark.parametrize("build", events.ALL, ids=lambda build: build.__name__)
EventBuilder = Callable[..., dict[str, Any]]


@each_event_format
def test_an_order_is_read_with_every_event_format(
    lambda_handler: Lambda, build: EventBuilder
) -> None:
    response = lambda_handler(build("GET", "/orders/1"))
    assert response["statusCode"] == 200
    assert json.loads(response["body"])["id"] == 1
    assert not response["isBase64Encoded"]


@each_event_format
def test_query_strings_and_bodies_arrive_with_every_event_format(
    lambda_handler: Lambda, build: EventBuilder
) -> None:
    page = lambda_handler(build("GET", "/orders", "status=paid&limit=2"))
    assert [order["status"] for order in json.loads(page["body"])["orders"]] == ["paid", "paid"]
    body = json.dumps({"customer_name": "Grün & Söhne"})
    key = str(uuid.uuid4())
    created = lambda_handler(build("POST", "/orders", body=body, idempotency_key=key))
    assert created["statusCode"] == 201
    assert json.loads(created["body"])["customer_name"] == "Grün & Söhne"


@each_event_format
def test_an_error_has_the_request_id_with_every_event_format(
    lambda_handler: Lambda, build: EventBuilder
) -> None:
    for path, status in (("/orders/999999", 404), ("/orders/0", 422), ("/nothing", 404)):
        response = lambda_handler(build("GET", path))
        assert response["statusCode"] == status
        body = json.loads(response["body"])
        assert body["status"] == status
        assert body["request_id"]
        headers = response.get("headers") or response["multiValueHeaders"]
        assert "application/problem+json" in str(headers)


async def test_a_problem_document_has_the_lambda_request_id(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        failing_events: list[Any] = [events.http_api("GET", "/orders/0"), {"requestContext": {}}]
        for event in failing_events:
            result = await fleet.invoke(event)
            assert json.loads(result.payload["body"])["request_id"] == result.request_id


@pytest.mark.parametrize("source", ["aws.events", "aws.scheduler"])
def test_a_scheduled_ping_opens_the_connection_and_reports_it(
    lambda_handler: Lambda, capsys: pytest.CaptureFixture[str], source: str
) -> None:
    from handler.warm.database import engine

    ping = {"source": source, "detail-type": "Scheduled Event", "detail": {}, "resources": []}
    assert lambda_handler(ping)["warm"] is True
    assert engine.get_engine().pool.checkedin() == 1  # type: ignore[attr-defined]  # it is a QueuePool
    [line] = log_lines(capsys.readouterr().out)
    assert line["outcome"] == "ok"


def test_a_ping_reports_an_unreachable_database_without_raising(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PORT", "1")
    with ColdHandler() as invoke:
        response = invoke({"source": "aws.events"})
    assert response["warm"] is False
    assert "cannot be reached" in response["detail"]
    [line] = log_lines(capsys.readouterr().out)
    assert line["outcome"] == "failed"
    assert "cannot be reached" in line["cause"]


@pytest.mark.parametrize(
    "event",
    [
        {"requestContext": None},
        {"requestContext": {}},
        {"requestContext": {"elb": {}}},
        {"requestContext": {}, "version": "2.0"},
        {"requestContext": {"http": {}}, "version": "2.0"},
        {"requestContext": {"stage": "prod", "http": None}, "version": "2.0"},
        {"requestContext": {}, "resource": "/"},
        events.http_api("GET", "/orders/1") | {"headers": ["secret"]},
        events.http_api("POST", "/orders") | {"isBase64Encoded": True, "body": "secret!"},
        events.rest_api("POST", "/orders") | {"isBase64Encoded": True, "body": "%%%"},
        events.load_balancer_multi_value("POST", "/orders") | {"body": "c2VjcmV0c"},
        events.load_balancer("GET", "/orders/1") | {"path": 5},
        events.load_balancer("GET", "/orders/1") | {"httpMethod": ["GET"]},
        events.load_balancer("GET", "/orders/\ud800"),
    ],
)
def test_a_malformed_request_gets_a_problem_document_and_one_log_line(
    lambda_handler: Lambda,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    event: Any,
) -> None:
    response = lambda_handler(event)
    assert response["statusCode"] == 400
    assert json.loads(response["body"])["detail"].startswith("This function was sent an ")
    output = capsys.readouterr().out
    [line] = log_lines(output)
    assert line["outcome"] == "refused"
    assert line["cause"].startswith("an HTTP event that cannot be read: ")
    assert "secret" not in output
    assert not caplog.records


def test_errors_use_the_header_format_of_the_load_balancer(lambda_handler: Lambda) -> None:
    event = events.load_balancer_multi_value("POST", "/orders") | {"body": "%"}
    headers = lambda_handler(event)["multiValueHeaders"]
    assert headers["content-type"] == ["application/problem+json"]
    assert "multiValueHeaders" not in lambda_handler({"requestContext": {"elb": {}}})


def test_the_openapi_schema_is_built_on_demand_and_documents_errors(lambda_handler: Lambda) -> None:
    from handler.app import app

    app.openapi_schema = None
    lambda_handler(events.http_api("GET", "/orders/1"))
    assert app.openapi_schema is None
    schema = json.loads(lambda_handler(events.http_api("GET", "/openapi.json"))["body"])
    responses = schema["paths"]["/orders"]["post"]["responses"]
    assert set(responses) == {"201", "400", "409", "413", "422", "500", "503", "504"}
    for status in set(responses) - {"201"}:
        assert list(responses[status]["content"]) == ["application/problem+json"]
    key = schema["paths"]["/orders"]["post"]["parameters"][0]
    assert (key["name"], key["in"], key["required"]) == ("idempotency-key", "header", True)


@pytest.mark.parametrize("error_type", [ZeroDivisionError, TimeoutError])
def test_a_response_does_not_contain_the_message_of_an_unexpected_error(
    lambda_handler: Lambda,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    error_type: type[Exception],
) -> None:
    from handler import orders

    async def fail(order_id: int) -> None:
        raise error_type("secret")

    monkeypatch.setattr(orders, "find", fail)
    response = lambda_handler(events.http_api("GET", "/orders/1"))
    assert response["statusCode"] == 500
    assert response["headers"]["content-type"] == "application/problem+json"
    assert "secret" not in response["body"]
    [line] = log_lines(capsys.readouterr().out)
    assert (line["outcome"], line["cause"]) == ("failed", error_type.__name__)
    assert error_type.__name__ in caplog.text  # for the operator, with its traceback


@pytest.mark.parametrize(
    "order_id",
    [
        "1_0",
        "1.0",
        "+1",
        " 1",
        "1 ",
        "01",
        "-01",
        "０１",
        "１",
        "1e0",
        "0x1",
        "%31%5F0",
        "true",
        "١",
    ],
)
def test_an_order_has_one_url(lambda_handler: Lambda, order_id: str) -> None:
    response = lambda_handler(events.http_api("GET", f"/orders/{order_id}"))
    assert response["statusCode"] == 422
    assert (
        json.loads(response["body"])["detail"]
        == "order_id: Input should be an integer in ASCII digits without leading zeros"
    )


@pytest.mark.parametrize("multi_value", [False, True], ids=["headers", "multiValueHeaders"])
def test_a_load_balancer_health_check_succeeds(lambda_handler: Lambda, multi_value: bool) -> None:
    build = events.load_balancer_multi_value if multi_value else events.load_balancer
    event = build("GET", "/health") | {"body": "", "isBase64Encoded": False}
    agent = "ELB-HealthChecker/2.0"
    event["multiValueHeaders" if multi_value else "headers"] = {
        "user-agent": [agent] if multi_value else agent
    }
    response = lambda_handler(event)
    assert (response["statusCode"], response["body"]) == (200, '{"status":"ok"}')
    assert ("multiValueHeaders" in response) == multi_value
