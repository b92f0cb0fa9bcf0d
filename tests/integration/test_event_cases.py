"""Events of public bug reports, each with three variants.

In `cases/events/*.json`, `event` is the function's input, `expect` the correct response, `source`
the report and `why` the reason. A variant changes one part of the event.
"""

import copy
import json
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from handler.warm import UnservedEventError
from infra.local.stack import Stack
from tests.conftest import ColdHandler, Lambda, log_lines, set_environment

CASES = {
    path.stem: json.loads(path.read_text())
    for path in sorted((Path(__file__).parent / "cases/events").glob("*.json"))
}
Change = Callable[[dict[str, Any]], None]
API = "https://abc123.execute-api.eu-central-1.amazonaws.com"


class Variant(NamedTuple):
    """A changed case, with the expected differences and the base path it needs."""

    case: str
    change: Change
    expect: dict[str, Any] = {}  # noqa: RUF012  # only read
    base_path: str = "v1"


def at(path: str) -> Change:
    """Change the path."""

    def change(event: dict[str, Any]) -> None:
        context = event["requestContext"]
        if event.get("version") == "2.0":
            event["rawPath"] = context["http"]["path"] = path
        else:
            has_stage = context.get("path") == f"/{context.get('stage')}{event['path']}"
            event["path"] = path
            context["path"] = f"/{context.get('stage')}{path}" if has_stage else path

    return change


def stage(name: str, path: str) -> Change:
    def change(event: dict[str, Any]) -> None:
        event["requestContext"]["stage"] = name
        at(path)(event)

    return change


def domain(name: str, path: str) -> Change:
    def change(event: dict[str, Any]) -> None:
        event["requestContext"]["domainName"] = name
        for host in ("host", "Host"):
            if host in event["headers"]:
                event["headers"][host] = name
        at(path)(event)

    return change


def headers(**values: str | list[str]) -> Change:
    """Change headers, in both places where an event may have them."""

    def change(event: dict[str, Any]) -> None:
        for name, value in values.items():
            name = name.replace("_", "-")
            event["headers"][name] = value if isinstance(value, str) else value[-1]
            if "multiValueHeaders" in event:
                event["multiValueHeaders"][name] = [value] if isinstance(value, str) else value

    return change


def replaced(**values: Any) -> Change:
    return lambda event: event.update(values)


def instead(other: dict[str, Any]) -> Change:
    """Replace the whole event."""

    def change(event: dict[str, Any]) -> None:
        event.clear()
        event.update(other)

    return change


def method(name: str, path: str = "/health") -> Change:
    def change(event: dict[str, Any]) -> None:
        event["requestContext"]["http"]["method"] = name
        at(path)(event)

    return change


def in_context(**values: Any) -> Change:
    return lambda event: event["requestContext"].update(values)


NOT_FOUND = {"status": 404, "json": {"title": "Not Found"}}
REDIRECTED = {"status": 307}
SECOND = {"status": 200, "json": {"id": 2}}
RAW = '{"customer_name": "Zoë & Söhne"}'
SQS_RECORD = CASES["sqs-batch"]["event"]["Records"][0]

VARIANTS = [
    Variant("docs-rest-api", at("/redoc"), {"contains": "/prod/openapi.json"}),
    Variant("docs-rest-api", at("/openapi.json"), {"contains": '"servers":[{"url":"/prod"}]'}),
    Variant("docs-rest-api", stage("v2", "/docs/oauth2-redirect")),
    Variant("docs-stage", at("/prod/redoc")),
    Variant("docs-stage", at("/prod/openapi.json"), {"contains": '"servers":[{"url":"/prod"}]'}),
    Variant("docs-stage", domain("api.example.com", "/v1/docs"), {"contains": "/v1/openapi.json"}),
    Variant("forwarded-port-list", headers(X_Forwarded_Port="443, 80", X_Forwarded_Proto="")),
    Variant("forwarded-port-list", headers(X_Forwarded_Port=["", "junk"], X_Forwarded_For="?")),
    Variant("forwarded-port-list", headers(X_Forwarded_Proto=["https", "http"], Host="")),
    Variant("head", method("HEAD", "/orders/1")),
    Variant("head", method("HEAD", "/orders")),
    Variant("head", method("HEAD", "/nothing"), {"status": 404}),
    Variant("host-ipv6", headers(host="[2001:db8::1]")),
    Variant("host-ipv6", headers(host="lb.example.com:")),
    Variant("host-ipv6", headers(host="a:b:c", x_forwarded_port="99999999")),
    Variant("http-api-payload-1.0", stage("orders", "/orders/orders/2"), SECOND),
    Variant("http-api-payload-1.0", stage("$default", "/orders/2"), SECOND),
    Variant("http-api-payload-1.0", domain("api.example.com", "/orders/2"), SECOND),
    Variant("lattice-v2", in_context(identity={"sourceVpcArn": "arn:…"}, region="eu-central-1")),
    Variant("lattice-v2", replaced(method="POST", body="e30=", isBase64Encoded=True)),
    Variant(
        "lattice-v2",
        instead(
            {
                "raw_path": "/orders/1",
                "method": "GET",
                "headers": {"host": "svc.example.com"},
                "query_string_parameters": {},
                "body": None,
                "is_base64_encoded": False,
            }
        ),
    ),
    Variant("mapping-key-http-api", at("/shop/v2/orders/2"), SECOND, "/shop/v2"),
    Variant("mapping-key-http-api", at("/v10/orders/1"), NOT_FOUND),
    Variant("mapping-key-http-api", at("/orders/2"), SECOND),
    Variant("mapping-key-rest-api", at("/v1/prod/orders/2"), SECOND, "v1/prod"),
    Variant("mapping-key-rest-api", at("/v1"), NOT_FOUND),
    Variant("mapping-key-rest-api", stage("v1", "/v1/orders/2"), SECOND, "v1/"),
    Variant("post-bad-base64", replaced(body="a"), {"status": 400}),
    Variant("post-bad-base64", replaced(body="e30"), {"status": 400}),
    Variant("post-bad-base64", replaced(body="{\u00e9}"), {"status": 400}),
    Variant("post-utf8", replaced(isBase64Encoded=False, body=RAW)),
    Variant("post-utf8", headers(content_type="application/json; charset=utf-8")),
    Variant("post-utf8", stage("prod", "/orders")),
    Variant("scheduler-own-input", replaced(source="ping")),
    Variant("scheduler-own-input", instead({"key1": "value1", "key2": "value2"})),
    Variant("scheduler-own-input", instead({"source": "aws.scheduler", "detail-type": "Other"})),
    Variant("slash-redirect-stage", at("/prod/health/"), {"location": "/prod/health"}),
    Variant(
        "slash-redirect-stage",
        domain("api.example.com", "/v1/orders/1/"),
        {"status": 307, "location": "/v1/orders/1"},
    ),
    Variant("slash-redirect-stage", headers(host="not a host"), REDIRECTED),
    Variant("sqs-batch", replaced(Records=[{**SQS_RECORD, "eventSource": "aws:kinesis"}])),
    Variant("sqs-batch", replaced(Records=[{"EventSource": "aws:sns", "Sns": {}}])),
    Variant("sqs-batch", replaced(Records=[])),
    Variant("stage-named-like-a-route", at("/orders/orders/1"), NOT_FOUND),
    Variant("stage-named-like-a-route", stage("$default", "/orders/2"), SECOND),
    Variant("stage-named-like-a-route", domain("execute-api.example.com", "/orders/2"), SECOND),
    Variant("websocket-message", in_context(eventType="CONNECT", routeKey="$connect")),
    Variant("websocket-message", in_context(eventType="DISCONNECT", routeKey="$disconnect")),
    Variant("websocket-message", replaced(body="eyI=", isBase64Encoded=True)),
]
CASES_AND_VARIANTS = [Variant(name, lambda _: None) for name in CASES] + VARIANTS


def test_each_case_has_three_variants() -> None:
    assert len(CASES) == 16
    assert Counter(variant.case for variant in VARIANTS) == dict.fromkeys(CASES, 3)


@pytest.fixture(scope="module")
def import_handler(stack: Stack) -> Any:
    """Return a function that imports the handler again with a base path."""
    with ExitStack() as undo, pytest.MonkeyPatch.context() as patch:
        set_environment(patch, stack.environment())

        def with_base_path(base_path: str) -> Lambda:
            undo.close()
            patch.setenv("API_BASE_PATH", base_path)
            return undo.enter_context(ColdHandler())

        yield with_base_path


@pytest.mark.parametrize("variant", CASES_AND_VARIANTS, ids=lambda variant: variant.case)
def test_a_reported_event_is_handled_correctly(
    import_handler: Callable[[str], Lambda], capsys: pytest.CaptureFixture[str], variant: Variant
) -> None:
    case = copy.deepcopy(CASES[variant.case])
    variant.change(case["event"])
    expect = {**case["expect"], **variant.expect}
    sent = copy.deepcopy(case["event"])
    handler = import_handler(variant.base_path)
    capsys.readouterr()
    if expect.get("raises"):
        with pytest.raises(UnservedEventError, match="an event of kind"):
            handler(sent)
    else:
        check(handler(sent), expect, capsys)
    assert sent == case["event"]  # the event belongs to the caller


def check(response: dict[str, Any], expect: dict[str, Any], capsys: Any) -> None:
    output = capsys.readouterr().out
    assert len(log_lines(output)) == 1
    if "or" in expect:
        status = response["statusCode"]
        [expect] = [choice for choice in expect["or"] if choice["status"] == status]
    allowed = expect["status"]
    assert response["statusCode"] in (allowed if isinstance(allowed, list) else [allowed])
    assert expect.get("contains", "") in response["body"]
    assert expect.get("log_contains", "") in output
    if "text" in expect:
        assert response["isBase64Encoded"] is False
        assert response["body"]
    if "empty" in expect:
        assert response["body"] == ""
        assert int(response["headers"]["content-length"]) > 0
    elif "json" in expect:
        assert expect["json"].items() <= json.loads(response["body"]).items()
    if response["statusCode"] in (307, 308):
        assert response["headers"]["location"] == expect["location"]
