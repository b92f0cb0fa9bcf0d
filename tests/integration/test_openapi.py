"""Any request, valid or not, gets a response that the OpenAPI document describes, never a 500.

Each request becomes a Lambda event, and reaches Postgres through PgBouncer.
"""

import base64
import io
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
import requests
import schemathesis
from hypothesis import settings
from requests.adapters import HTTPAdapter
from schemathesis import Case
from urllib3 import HTTPResponse

from handler.app import app
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.stack import Stack
from tests.conftest import ColdHandler, Lambda, set_environment

api_schema = schemathesis.openapi.from_dict(app.openapi())
# Sanitization would take the idempotency key for a secret and hide it.
api_schema.config.output.sanitization.update(enabled=False)


class Gateway(HTTPAdapter):
    """A transport adapter for `requests` that invokes a function as an HTTP API does."""

    def __init__(self, function: Lambda) -> None:
        super().__init__()
        self._function = function

    def send(self, request: requests.PreparedRequest, *_: Any, **__: Any) -> requests.Response:
        url = urlsplit(str(request.url))
        body: Any = request.body or b""
        event = api_gateway_event(
            str(request.method),
            url.path,
            query=url.query,
            headers=((name, str(value)) for name, value in request.headers.items()),
            body=body if isinstance(body, bytes) else body.encode(),
        )
        # Lambda passes events and responses as JSON.
        result = json.loads(json.dumps(self._function(json.loads(json.dumps(event)))))
        encoded = result["body"].encode()
        content = base64.b64decode(encoded) if result["isBase64Encoded"] else encoded
        status, headers = result["statusCode"], result["headers"]
        raw_response = HTTPResponse(
            io.BytesIO(content),
            headers,
            status,
            preload_content=False,
            request_method=request.method,
        )
        return self.build_response(request, raw_response)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """Open a session to the handler, on a stack of its own, where the tests may create any rows."""
    with Stack() as stack, pytest.MonkeyPatch.context() as patch:
        set_environment(patch, stack.environment())
        with ColdHandler() as invoke, requests.Session() as session:
            session.mount("http://", Gateway(invoke))
            yield session


def validate(case: Case[Any], session: requests.Session) -> None:
    """Send the request and validate the response; repeat a GET request as HEAD."""
    response = case.call_and_validate(session=session, base_url="http://api")
    if case.method == "GET":
        head_request = response.request.copy()
        head_request.method = "HEAD"
        head = session.send(head_request)
        assert (head.status_code, head.content) == (response.status_code, b"")
        assert head.headers["content-type"] == response.headers["content-type"][0]


TESTED_OPERATIONS: list[str] = []


def generate_requests(method: str, path: str) -> Callable[[Callable[..., None]], Any]:
    """Return a decorator that runs a test with generated requests, the same ones in each run.

    A failing request is shown as a `curl` command. Each operation has its own test, because
    schemathesis' `parametrize` would give all of them the same id, and xdist would run only one.
    """
    TESTED_OPERATIONS.append(f"{method} {path}")
    parametrize = api_schema.include(method=method, path=path).parametrize()
    return lambda test: parametrize(settings(max_examples=300)(test))


@generate_requests("GET", "/orders/{order_id}")
def test_reading_an_order_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@generate_requests("GET", "/orders")
def test_listing_orders_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@generate_requests("POST", "/orders")
def test_creating_an_order_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@generate_requests("GET", "/health")
def test_health_matches_the_openapi_document(case: Case[Any], session: requests.Session) -> None:
    validate(case, session)


@generate_requests("GET", "/ready")
def test_readiness_matches_the_openapi_document(case: Case[Any], session: requests.Session) -> None:
    validate(case, session)


def test_every_documented_operation_is_tested() -> None:
    paths = app.openapi()["paths"]
    documented = [
        f"{method.upper()} {path}" for path, methods in paths.items() for method in methods
    ]
    assert sorted(TESTED_OPERATIONS) == sorted(documented)


def test_a_405_lists_the_documented_methods(session: requests.Session) -> None:
    response = session.put("http://api/orders")
    assert (response.status_code, response.headers["allow"]) == (405, "GET, HEAD, POST")
