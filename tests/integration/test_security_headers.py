"""Security headers of every response, and redirects that ignore caller input."""

import json
import re

import pytest

from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import Lambda
from tests.events import http_api


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("GET", "/orders/1", "", 200),
        ("GET", "/orders/999999", "", 404),
        ("GET", "/orders/x", "", 422),
        ("DELETE", "/health", "", 405),
        ("POST", "/orders", "x" * 20_000, 413),
        ("GET", "/nowhere", "", 404),
    ],
)
def test_responses_disable_sniffing_and_caching(
    lambda_handler: Lambda, method: str, path: str, body: str, status: int
) -> None:
    answer = lambda_handler(http_api(method, path, body=body, idempotency_key="browsers"))
    assert answer["statusCode"] == status
    assert answer["headers"]["x-content-type-options"] == "nosniff"
    assert answer["headers"]["cache-control"] == "no-store"


@pytest.mark.parametrize("claimed", ["20000", "99999999999", None])
def test_an_oversized_body_gets_a_problem_document_despite_a_false_length(
    lambda_handler: Lambda, claimed: str | None
) -> None:
    event = http_api("POST", "/orders", body="x" * 20_000, idempotency_key="large")
    if claimed is not None:
        event["headers"]["content-length"] = claimed
    answer = lambda_handler(event)
    assert answer["statusCode"] == 413
    assert answer["headers"]["content-type"] == "application/problem+json"
    assert json.loads(answer["body"])["status"] == 413


@pytest.mark.parametrize("path", ["/orders/", "/orders/1/", "/health/", "//evil.example/"])
def test_redirects_ignore_caller_supplied_host_headers(lambda_handler: Lambda, path: str) -> None:
    answer = lambda_handler(
        http_api("GET", path, host="evil.example", x_forwarded_proto="javascript")
    )
    assert answer["statusCode"] in (307, 404)
    location = answer["headers"].get("location", "/")
    assert location.startswith("/")
    assert not location.startswith("//")


@pytest.mark.parametrize(("requested", "status"), [({}, 404), ({"API_DOCS": "on"}, 200)])
async def test_on_lambda_documentation_pages_are_off_by_default(
    stack: Stack, requested: dict[str, str], status: int
) -> None:
    async with Fleet(stack.environment() | requested) as fleet:
        for path in ("/docs", "/redoc"):
            answer = await fleet.invoke(http_api("GET", path))
            assert answer.payload["statusCode"] == status


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_documentation_pages_pin_cdn_scripts_by_hash(lambda_handler: Lambda, path: str) -> None:
    page = lambda_handler(http_api("GET", path))["body"]
    loaded = re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=\"https?:[^>]*>", page)
    assert len(loaded) == (2 if path == "/docs" else 1)
    for tag in loaded:
        assert re.search(r"@\d+\.\d+\.\d+/", tag), tag
        assert re.search(r'integrity="sha384-[A-Za-z0-9+/]{64}" crossorigin="anonymous"', tag), tag


@pytest.mark.parametrize("several", [False, True], ids=["headers", "multi-value headers"])
def test_responses_without_a_route_disable_sniffing_and_caching(
    lambda_handler: Lambda, several: bool
) -> None:
    event = {"requestContext": {"connectionId": "c", "eventType": "CONNECT", "apiId": "a"}}
    answer = lambda_handler(event | ({"multiValueHeaders": {}} if several else {}))
    assert answer["statusCode"] == 400
    assert answer["headers"]["x-content-type-options"] == "nosniff"
    assert answer["headers"]["cache-control"] == "no-store"
    if several:
        assert answer["multiValueHeaders"]["x-content-type-options"] == ["nosniff"]
