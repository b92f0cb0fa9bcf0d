"""No combination of headers, path, stage and domain causes a 500."""

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from infra.local.stack import Stack
from tests import events
from tests.conftest import ColdHandler, Lambda, set_environment

BASE_PATH = "/shop/v2"
#: Every value that HTTP allows in a header.
VALUE = st.text(st.characters(min_codepoint=32, max_codepoint=255), max_size=20)
NAMES = [
    *("Host", "host", "X-Forwarded-Port", "x-forwarded-port", "X-Forwarded-Proto"),
    *("x-forwarded-for", "Forwarded", "X-Forwarded-Host", "Cookie", "Accept", "Content-Length"),
    *("Content-Type", "Idempotency-Key", "Origin", "Range", "Expect", "X-Log-SQL"),
]
UNUSUAL_VALUES = [
    *("", " ", ":", ",", "443,80", "443, 8443", "-1", "99999999", "4_3", "４４３", "https,http"),
    *("[2001:db8::1]", "[2001:db8::1]:443", "[::1", "a:b:c", "example.com:", "[v1.x]", "a/b?c#d@e"),
    *(
        "HTTPS",
        "ws",
        "example.com:0",
        "\x80\xff",
        "é",
        "text/html",
        "application/json",
        "0",
        "9" * 5000,
    ),
]
PATHS = [
    *("/orders/1", "/orders", "/orders/", "/health", "/health/", "/docs", "/openapi.json", "/", ""),
    *("//", "/orders//1", "//orders/1", "/orders/1/", "/orders/%31", "/orders/%2531", "/%", "/%ff"),
    *(
        "/orders/../health",
        "/orders/1?x",
        "/orders/%00",
        "/\u00e9",
        "/orders/1_0",
        "/orders/\u0661",
    ),
]
PREFIXES = ["", "/prod", "/production", "/$default", BASE_PATH, f"{BASE_PATH}0", "/shop"]
STAGES = ["prod", "$default", "orders", "shop", "", None]
DOMAINS = [
    *(events.OWN_DOMAIN, "api.example.com", "abc.lambda-url.eu-central-1.on.aws", "localhost:3000"),
    *("", None),
]
METHODS = ["GET", "HEAD", "POST", "PUT", "OPTIONS", "TRACE", "get", "M-SEARCH", ""]
QUERIES = ["", "status=paid", "limit=1&limit=2", "after=%00", "=", "&", "status=%ff"]


@st.composite
def requests(draw: st.DrawFn) -> dict[str, Any]:
    """Generate the event of a request through any service, with any input of the client."""
    build = draw(st.sampled_from(events.ALL))
    path = draw(st.sampled_from(PREFIXES)) + draw(st.sampled_from(PATHS) | VALUE.map("/{}".format))
    event: dict[str, Any] = build(draw(st.sampled_from(METHODS)), path)
    context = event["requestContext"]
    if "elb" not in context:
        context["stage"] = draw(st.sampled_from(STAGES))
        context["domainName"] = draw(st.sampled_from(DOMAINS) | VALUE)
        context["path"] = draw(st.sampled_from([path, f"/{context['stage']}{path}"]))
    query = draw(st.sampled_from(QUERIES))
    if "rawQueryString" in event:
        event["rawQueryString"] = query
    for name in draw(st.lists(st.sampled_from(NAMES), max_size=4)):
        value = draw(st.sampled_from(UNUSUAL_VALUES) | VALUE)
        if "headers" in event:
            event["headers"][name] = value
        if "multiValueHeaders" in event:
            event["multiValueHeaders"][name] = [value, draw(st.sampled_from(UNUSUAL_VALUES))]
    return event


@pytest.fixture(scope="module")
def handler() -> Iterator[Lambda]:
    with Stack() as stack, pytest.MonkeyPatch.context() as patch:
        set_environment(patch, {**stack.environment(), "API_BASE_PATH": BASE_PATH})
        with ColdHandler() as invoke:
            yield invoke


@settings(max_examples=2000)
@given(requests())
@example(events.http_api("GET", "/orders/", host="") | {"headers": {}})
def test_no_request_causes_a_500(handler: Lambda, event: dict[str, Any]) -> None:
    sent = copy.deepcopy(event)
    response = handler(event)
    json.dumps(response)
    assert response["statusCode"] < 500
    assert event == sent


LOCATIONS = [
    (events.http_api_on_a_stage, "/prod", events.OWN_DOMAIN),
    (events.http_api_1_0, "/prod", events.OWN_DOMAIN),
    (events.rest_api, "/prod", events.OWN_DOMAIN),
    (events.http_api, BASE_PATH, "api.example.com"),
    (events.rest_api, BASE_PATH, "api.example.com"),
]


@given(
    st.sampled_from(LOCATIONS),
    st.sampled_from(["/orders", "/orders/1", "/health", "/docs"]),
    st.sampled_from(["", *UNUSUAL_VALUES]),
)
def test_a_redirect_keeps_stage_and_base_path_without_a_host(
    handler: Lambda, location: Any, path: str, port: str
) -> None:
    build, prefix, domain = location
    path_in_event = f"{prefix}{path}/" if prefix == BASE_PATH else f"{path}/"
    event = build("GET", path_in_event, host=domain, x_forwarded_port=port)
    event["requestContext"]["domainName"] = domain
    response = handler(event)
    assert response["statusCode"] == 307
    assert response["headers"]["location"] == f"{prefix}{path}"
