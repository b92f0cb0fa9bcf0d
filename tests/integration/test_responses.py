"""An error in the application is a 500 with a log line, and responses are encoded correctly."""

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
    """Run it on a thread with its own loop, as on Lambda."""
    function = LambdaHandler(app)
    try:
        return dict(function(event, None))
    finally:
        function.loop.close()
        asyncio.set_event_loop(None)


services = pytest.mark.parametrize("event", events.ALL, ids=lambda build: build.__name__)


@services
@pytest.mark.parametrize(
    ("app", "path", "named"),
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
def test_an_application_error_is_500_and_logged(
    event: Callable[..., dict[str, Any]],
    app: Any,
    path: str,
    named: str,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    answer = invoke(app, event("GET", path))
    assert answer["statusCode"] == 500
    assert json.loads(answer["body"])["detail"] == "An internal error occurred."
    assert "application/problem+json" in str(answer.get("headers") or answer["multiValueHeaders"])
    assert "secret" not in str(answer)
    [line] = log_lines(capsys.readouterr().out)
    assert (line["outcome"], line["status"], line["cause"]) == ("failed", 500, named)
    assert named in caplog.text  # with its traceback


def test_an_error_without_problem_documents_is_logged_too(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    plain = FastAPI()
    plain.get("/value")(value)
    assert invoke(plain, events.http_api("GET", "/value"))["statusCode"] == 500
    [line] = log_lines(capsys.readouterr().out)
    assert line["cause"] == "ValueError"
    assert "ValueError" in caplog.text


@services
def test_a_latin_1_header_is_preserved(event: Callable[..., dict[str, Any]]) -> None:
    answer = invoke(app, event("GET", "/latin-1"))
    assert answer["statusCode"] == 200
    headers = answer.get("headers") or answer["multiValueHeaders"]
    assert headers["x-name"] in ("Zoë", ["Zoë"])


def test_an_error_after_the_response_keeps_it_and_is_logged(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    answer = invoke(app, events.http_api("GET", "/afterwards"))
    assert (answer["statusCode"], answer["body"]) == (200, "done")
    [line] = log_lines(capsys.readouterr().out)
    assert line["cause"] == "LookupError"
    assert "LookupError" in caplog.text


TEXT = [
    *("text/html", "text/plain; charset=utf-8", "text/csv", "application/json"),
    *("application/javascript", "application/xml", "application/vnd.api+json"),
    *("application/vnd.oai.openapi", "application/problem+json", "application/hal+json"),
    "image/svg+xml",
]


@services
@pytest.mark.parametrize("kind", TEXT)
def test_text_is_not_base64(event: Callable[..., dict[str, Any]], kind: str) -> None:
    async def says(scope: Scope, receive: Receive, send: Send) -> None:
        await Response("Grün", media_type=kind)(scope, receive, send)

    answer = invoke(says, event("GET", "/"))
    assert (answer["body"], answer["isBase64Encoded"]) == ("Grün", False)


@services
@pytest.mark.parametrize("kind", ["image/png", "application/octet-stream", "text/plain"])
def test_bytes_are_base64(event: Callable[..., dict[str, Any]], kind: str) -> None:
    async def says(scope: Scope, receive: Receive, send: Send) -> None:
        await Response(b"\xff\x00", media_type=kind)(scope, receive, send)

    answer = invoke(says, event("GET", "/"))
    assert (answer["body"], answer["isBase64Encoded"]) == ("/wA=", True)


def test_mangum_logs_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    invoke(app, events.http_api("GET", "/latin-1"))
    assert not caplog.records
