"""Every response has security headers, and redirects ignore caller input."""

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
    response = lambda_handler(http_api(method, path, body=body, idempotency_key="browsers"))
    assert response["statusCode"] == status
    assert response["headers"]["x-content-type-options"] == "nosniff"
    assert response["headers"]["cache-control"] == "no-store"


@pytest.mark.parametrize("content_length", ["20000", "99999999999", None])
def test_an_oversized_body_gets_a_problem_document_despite_a_false_length(
    lambda_handler: Lambda, content_length: str | None
) -> None:
    event = http_api("POST", "/orders", body="x" * 20_000, idempotency_key="large")
    if content_length is not None:
        event["headers"]["content-length"] = content_length
    response = lambda_handler(event)
    assert response["statusCode"] == 413
    assert response["headers"]["content-type"] == "application/problem+json"
    assert json.loads(response["body"])["status"] == 413


@pytest.mark.parametrize("path", ["/orders/", "/orders/1/", "/health/", "//evil.example/"])
def test_redirects_ignore_caller_supplied_host_headers(lambda_handler: Lambda, path: str) -> None:
    response = lambda_handler(
        http_api("GET", path, host="evil.example", x_forwarded_proto="javascript")
    )
    assert response["statusCode"] in (307, 404)
    location = response["headers"].get("location", "/")
    assert location.startswith("/")
    assert not location.startswith("//")


@pytest.mark.parametrize(("variables", "status"), [({}, 404), ({"API_DOCS": "on"}, 200)])
async def test_documentation_pages_are_off_on_lambda_by_default(
    stack: Stack, variables: dict[str, str], status: int
) -> None:
    async with Fleet(stack.environment() | variables) as fleet:
        for path in ("/docs", "/redoc"):
            assert (await fleet.invoke(http_api("GET", path))).payload["statusCode"] == status


@pytest.mark.parametrize("path", ["/docs", "/redoc"])
def test_documentation_pages_pin_cdn_scripts_by_hash(lambda_handler: Lambda, path: str) -> None:
    page = lambda_handler(http_api("GET", path))["body"]
    tags = re.findall(r"<(?:script|link)\b[^>]*(?:src|href)=\"https?:[^>]*>", page)
    assert len(tags) == (2 if path == "/docs" else 1)
    for tag in tags:
        assert re.search(r"@\d+\.\d+\.\d+/", tag), tag
        assert re.search(r'integrity="sha384-[A-Za-z0-9+/]{64}" crossorigin="anonymous"', tag), tag


@pytest.mark.parametrize("multi_value", [False, True], ids=["headers", "multi-value headers"])
def test_responses_without_a_route_disable_sniffing_and_caching(
    lambda_handler: Lambda, multi_value: bool
) -> None:
    event = {"requestContext": {"connectionId": "c", "eventType": "CONNECT", "apiId": "a"}}
    response = lambda_handler(event | ({"multiValueHeaders": {}} if multi_value else {}))
    assert response["statusCode"] == 400
    assert response["headers"]["x-content-type-options"] == "nosniff"
    assert response["headers"]["cache-control"] == "no-store"
    if multi_value:
        assert response["multiValueHeaders"]["x-content-type-options"] == ["nosniff"]
