"""An application error returns status 500 and is logged, and responses are encoded correctly."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import FastAPI, Response
from fastapi.responses import StreamingResponse
from starlette.background import BackgroundTask
from starlette.types import Receive, Scope, Send

from handler.warm import LambdaHandler, install
from tests import events
from tests.conftest import log_lines

app = FastAPI()
install(app)


@app.get("/not-latin-1")
async def not_latin_1(response: Response) -> None:
    response.headers["x-name"] = "5 €"


@app.get("/latin-1")
async def latin_1(response: Response) -> None:
    response.headers["x-name"] = "Zoë"


@app.get("/half")
async def half() -> StreamingResponse:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"secret"
        raise LookupError("secret")

    return StreamingResponse(chunks(), headers={"x-more": "secret"})


@app.get("/afterwards")
async def afterwards(response: Response) -> Response:
    async def fail() -> None:
        raise LookupError("secret")

    return Response("done", media_type="text/plain", background=BackgroundTask(fail))


@app.get("/value")
async def value() -> None:
    raise ValueError("secret")


async def never_starts(scope: Scope, receive: Receive, send: Send) -> None:
    pass


async def starts_only(scope: Scope, receive: Receive, send: Send) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})


async def never_ends(scope: Scope, receive: Receive, send: Send) -> None:
    await starts_only(scope, receive, send)
    await send({"type": "http.response.body", "body": b"secret", "more_body": True})


async def raises_at_once(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("requestContext")


async def not_utf_8(scope: Scope, receive: Receive, send: Send) -> None:
    headers = [(b"content-type", b"text/plain"), (b"\xff-name", b"value")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"secret"})


def invoke(app: Any, event: dict[str, Any]) -> dict[str, Any]:
    """Invoke a new handler for the app, and close its event loop."""
    handler = LambdaHandler(app)
    try:
        return dict(handler(event, None))
    finally:
        handler.loop.close()
        asyncio.set_event_loop(None)


each_event_format = pytest.mark.parametrize("build", events.ALL, ids=lambda build: build.__name__)


@each_event_format
@pytest.mark.parametrize(
    ("app", "path", "error_name"),
    [
        (app, "/not-latin-1", "UnicodeEncodeError"),
        (app, "/half", "LookupError"),
        (app, "/value", "ValueError"),
        (never_starts, "/", "IncompleteResponseError"),
        (starts_only, "/", "IncompleteResponseError"),
        (never_ends, "/", "IncompleteResponseError"),
        (raises_at_once, "/", "KeyError"),
        (not_utf_8, "/", "UnicodeDecodeError"),
    ],
)
def test_an_application_error_returns_500_and_is_logged(
    build: Callable[..., dict[str, Any]],
    app: Any,
    path: str,
    error_name: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    response = invoke(app, build("GET", path))
    assert response["statusCode"] == 500
    assert json.loads(response["body"])["detail"] == "An internal error occurred."
    headers = response.get("headers") or response["multiValueHeaders"]
    assert "application/problem+json" in str(headers)
    assert "secret" not in str(response)
    [line] = log_lines(capsys.readouterr().out)
    assert (line["outcome"], line["status"], line["cause"]) == ("failed", 500, error_name)
    assert error_name in caplog.text  # with its traceback


def test_an_error_is_logged_in_an_app_without_install(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plain = FastAPI()
    plain.get("/value")(value)
    assert invoke(plain, events.http_api("GET", "/value"))["statusCode"] == 500
    [line] = log_lines(capsys.readouterr().out)
    assert line["cause"] == "ValueError"
    assert "ValueError" in caplog.text


@each_event_format
def test_a_latin_1_header_is_preserved(build: Callable[..., dict[str, Any]]) -> None:
    response = invoke(app, build("GET", "/latin-1"))
    assert response["statusCode"] == 200
    headers = response.get("headers") or response["multiValueHeaders"]
    assert headers["x-name"] in ("Zoë", ["Zoë"])


def test_an_error_after_the_response_is_logged_and_does_not_change_it(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    response = invoke(app, events.http_api("GET", "/afterwards"))
    assert (response["statusCode"], response["body"]) == (200, "done")
    [line] = log_lines(capsys.readouterr().out)
    assert line["cause"] == "LookupError"
    assert "LookupError" in caplog.text


TEXT_MEDIA_TYPES = [
    *("text/html", "text/plain; charset=utf-8", "text/csv", "application/json"),
    *("application/javascript", "application/xml", "application/vnd.api+json"),
    *("application/vnd.oai.openapi", "application/problem+json", "application/hal+json"),
    "image/svg+xml",
]


@each_event_format
@pytest.mark.parametrize("media_type", TEXT_MEDIA_TYPES)
def test_text_is_not_base64_encoded(build: Callable[..., dict[str, Any]], media_type: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("Grün", media_type=media_type)(scope, receive, send)

    response = invoke(app, build("GET", "/"))
    assert (response["body"], response["isBase64Encoded"]) == ("Grün", False)


@each_event_format
@pytest.mark.parametrize("media_type", ["image/png", "application/octet-stream", "text/plain"])
def test_bytes_are_base64_encoded(build: Callable[..., dict[str, Any]], media_type: str) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"\xff\x00", media_type=media_type)(scope, receive, send)

    response = invoke(app, build("GET", "/"))
    assert (response["body"], response["isBase64Encoded"]) == ("/wA=", True)


def test_mangum_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    invoke(app, events.http_api("GET", "/latin-1"))
    assert not caplog.records
