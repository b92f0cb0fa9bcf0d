"""Any request, valid or not, gets a response that the OpenAPI document describes, never a 500.

Requests go through the Lambda event, PgBouncer and Postgres.
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

described = schemathesis.openapi.from_dict(app.openapi())
# It would take the idempotency key for a secret.
described.config.output.sanitization.update(enabled=False)


class Gateway(HTTPAdapter):
    """Adapter that sends `requests` to a function as through an HTTP API."""

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
        # As JSON, which is what a runtime receives and sends.
        answer = json.loads(json.dumps(self._function(json.loads(json.dumps(event)))))
        encoded = answer["body"].encode()
        content = base64.b64decode(encoded) if answer["isBase64Encoded"] else encoded
        status, headers = answer["statusCode"], answer["headers"]
        response = HTTPResponse(
            io.BytesIO(content),
            headers,
            status,
            preload_content=False,
            request_method=request.method,
        )
        return self.build_response(request, response)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """A session to the handler, on a stack that the test may fill with anything."""
    with Stack() as stack, pytest.MonkeyPatch.context() as patch:
        set_environment(patch, stack.environment())
        with ColdHandler() as invoke, requests.Session() as session:
            session.mount("http://", Gateway(invoke))
            yield session


def validate(case: Case[Any], session: requests.Session) -> None:
    """Send the request; for GET, as HEAD too."""
    got = case.call_and_validate(session=session, base_url="http://api")
    if case.method == "GET":
        prepared = got.request.copy()
        prepared.method = "HEAD"
        head = session.send(prepared)
        assert (head.status_code, head.content) == (got.status_code, b"")
        assert head.headers["content-type"] == got.headers["content-type"][0]


TRIED: list[str] = []


def drawn_for(method: str, path: str) -> Callable[[Callable[..., None]], Any]:
    """Generate the same requests each time, and show a failing one as a `curl` command.

    Each operation has its own test, since schemathesis' `parametrize` would share one id among
    them, and xdist would run only one.
    """
    TRIED.append(f"{method} {path}")
    draw = described.include(method=method, path=path).parametrize()
    return lambda test: draw(settings(max_examples=300)(test))


@drawn_for("GET", "/orders/{order_id}")
def test_reading_an_order_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@drawn_for("GET", "/orders")
def test_listing_orders_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@drawn_for("POST", "/orders")
def test_creating_an_order_matches_the_openapi_document(
    case: Case[Any], session: requests.Session
) -> None:
    validate(case, session)


@drawn_for("GET", "/health")
def test_health_matches_the_openapi_document(case: Case[Any], session: requests.Session) -> None:
    validate(case, session)


@drawn_for("GET", "/ready")
def test_readiness_matches_the_openapi_document(case: Case[Any], session: requests.Session) -> None:
    validate(case, session)


def test_every_documented_operation_is_tested() -> None:
    paths = app.openapi()["paths"]
    there = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert sorted(TRIED) == sorted(there)


def test_an_undocumented_method_is_405_with_the_documented_ones(session: requests.Session) -> None:
    answer = session.put("http://api/orders")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, HEAD, POST")
