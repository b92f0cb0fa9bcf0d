"""Problem documents (RFC 9457): the response to every error, and their OpenAPI description.

`request_policy` maps failures to statuses.
"""

import uuid
from http import HTTPStatus
from http.client import responses
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from fastapi.utils import is_body_allowed_for_status_code
from starlette.datastructures import URL, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.warm import log_line
from handler.warm.errors import DatabaseError, Failure

PROBLEM = "application/problem+json"

# Written by hand, because a pydantic model would be built at import for a rarely used schema.
_FIELDS = {"title": "string", "status": "integer", "detail": "string", "request_id": "string"}
_schema = {"title": "Problem", "type": "object", "required": list(_FIELDS)}
_properties = {"properties": {name: {"type": kind} for name, kind in _FIELDS.items()}}
_content = {PROBLEM: {"schema": _schema | _properties}}
#: On every response: browsers do not guess its type, and nobody caches it.
HEADERS = {"X-Content-Type-Options": "nosniff", "Cache-Control": "no-store"}
_DEFAULT_HEADERS = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
_DETAIL = {
    409: "The request conflicts with stored data.",
    413: "The body is too large.",
    422: "A value is not allowed.",
    500: "An internal error occurred.",
    503: "The database is not available.",
    504: "The database took too long.",
}


def problem_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses` of a route: these statuses and 500, 503 and 504."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _content}
        for status in (*statuses, 500, 503, 504)
    }


def body(status: int, detail: str, context: object) -> dict[str, Any]:
    """Return a document; on Lambda its `request_id` is the one in the log line."""
    return {
        "title": responses.get(status, "Error"),  # a non-standard status has no phrase
        "status": status,
        "detail": detail,
        "request_id": getattr(context, "aws_request_id", None) or str(uuid.uuid4()),
    }


def add_handlers(app: FastAPI) -> None:
    """Respond to every exception of `app` with a problem document."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, respond_to_bug)
    app.add_exception_handler(DatabaseError, _database_error)


def complete_responses(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: default headers against type guessing and caching, relative redirects, and a
    problem document for a body that Starlette rejects."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        refused = False

        async def send_with_headers(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start":
                # As bytes: Starlette's `MutableHeaders` takes 2.6 times as long for each response.
                headers = message["headers"] = list(message.get("headers", ()))
                values = dict(headers)
                if b"location" in values:
                    location = MutableHeaders(raw=headers)
                    location["location"] = _without_host(location["location"], scope)
                refused = message["status"] == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
                refused = refused and values.get(b"content-type", b"").startswith(b"text/plain")
                if not refused:
                    headers += [header for header in _DEFAULT_HEADERS if header[0] not in values]
            if not refused:
                await send(message)
            elif not message.get("more_body") and message["type"] == "http.response.body":
                await respond(Request(scope), 413, _DETAIL[413])(scope, receive, send)

        await app(scope, receive, send_with_headers)

    return serve


def _without_host(location: str, scope: Scope) -> str:
    """Leave out the host of a redirect to this API: the caller chose it, and a cache that keeps the
    answer would send others there."""
    parts = urlsplit(location)
    if not parts.netloc or parts.netloc != URL(scope=scope).netloc:
        return location
    path = f"/{parts.path.lstrip('/')}"
    return urlunsplit(parts._replace(scheme="", netloc="", path=path))


def respond(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Return the document as a response."""
    content = body(status, detail, request.scope.get("aws.context"))
    return JSONResponse(content, status, HEADERS | (headers or {}), media_type=PROBLEM)


def log_bug(error: Exception) -> str:
    """Record an exception of the app in the log line; return the detail for the caller."""
    log_line.failed(Failure(type(error).__name__, "see its traceback in the log"))
    return _DETAIL[500]


async def _http_error(request: Request, error: Any) -> Response:
    if not is_body_allowed_for_status_code(error.status_code):
        return Response(status_code=error.status_code, headers=error.headers)
    return respond(request, error.status_code, error.detail, error.headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    status, details = HTTPStatus.UNPROCESSABLE_ENTITY, []
    for fault in error.errors():
        location, message = fault["loc"][-1], fault["msg"]
        if fault["type"] == "string_pattern_mismatch":
            message = "contains a character that is not allowed"  # instead of the pattern
        if fault["type"] == "json_invalid":
            location = "body"  # instead of the position
        if fault["type"] == "json_invalid" or fault["loc"][0] == "header":
            status = HTTPStatus.BAD_REQUEST  # the request is malformed
        details.append(f"{location}: {message}")
    return respond(request, status, "; ".join(details))


async def respond_to_bug(request: Request, error: Exception) -> JSONResponse:
    """Respond to an exception that the app did not handle."""
    return respond(request, 500, log_bug(error))


async def _database_error(request: Request, error: Any) -> JSONResponse:
    failure = error.failure
    log_line.failed(failure)
    headers = {"Retry-After": str(failure.retry_after)} if failure.retry_after else None
    return respond(request, failure.status, _DETAIL[failure.status], headers)
