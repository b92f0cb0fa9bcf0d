"""Whatever is sent, what the OpenAPI document allows and what it does not: never a 500, and each
answer is one that the document describes. Through the Lambda event, PgBouncer and Postgres."""

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
from infra.local.fleet.front_door import api_gateway_event
from infra.local.stack import Stack
from tests.conftest import Lambda, cold_runtime

described = schemathesis.openapi.from_dict(app.openapi())
described.config.output.sanitization.update(enabled=False)  # it would take our key for a secret


class Gateway(HTTPAdapter):
    """Has `requests` speak to a function, as through an HTTP API."""

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
        # As it comes and goes: a runtime is sent JSON, and sends it.
        answer = json.loads(json.dumps(self._function(json.loads(json.dumps(event)))))
        said = answer["body"].encode()
        content = base64.b64decode(said) if answer["isBase64Encoded"] else said
        status, headers = answer["statusCode"], answer["headers"]
        response = HTTPResponse(io.BytesIO(content), headers, status, preload_content=False)
        return self.build_response(request, response)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """To the handler as a cold runtime has it, on a stack that may be filled with anything."""
    with Stack() as stack, pytest.MonkeyPatch.context() as patch:
        for name, value in stack.environment().items():
            patch.setenv(name, value)
        with cold_runtime() as invoke, requests.Session() as session:
            session.mount("http://", Gateway(invoke))
            yield session


TRIED: list[str] = []


def drawn_for(method: str, path: str) -> Callable[[Callable[..., None]], Any]:
    """The same requests each time; one whose answer is wrong is shown as the `curl` to send it. An
    operation has a test of its own: those of one `parametrize` share an id, and xdist runs one."""
    TRIED.append(f"{method} {path}")
    draw = described.include(method=method, path=path).parametrize()
    return lambda test: draw(settings(max_examples=300)(test))


@drawn_for("GET", "/orders/{order_id}")
def test_an_order_is_answered_as_described(case: Case[Any], session: requests.Session) -> None:
    case.call_and_validate(session=session, base_url="http://api")


@drawn_for("GET", "/orders")
def test_a_page_is_answered_as_described(case: Case[Any], session: requests.Session) -> None:
    case.call_and_validate(session=session, base_url="http://api")


@drawn_for("POST", "/orders")
def test_an_order_placed_is_answered_as_described(
    case: Case[Any], session: requests.Session
) -> None:
    case.call_and_validate(session=session, base_url="http://api")


@drawn_for("GET", "/health")
def test_health_is_answered_as_described(case: Case[Any], session: requests.Session) -> None:
    case.call_and_validate(session=session, base_url="http://api")


@drawn_for("GET", "/ready")
def test_readiness_is_answered_as_described(case: Case[Any], session: requests.Session) -> None:
    case.call_and_validate(session=session, base_url="http://api")


def test_every_operation_that_the_document_has_is_tried() -> None:
    paths = app.openapi()["paths"]
    there = [f"{method.upper()} {path}" for path, methods in paths.items() for method in methods]
    assert sorted(TRIED) == sorted(there)


def test_a_method_that_a_path_has_not_is_told_all_that_it_has(session: requests.Session) -> None:
    answer = session.put("http://api/orders")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, POST")
