"""Problem responses (RFC 9457): what a caller gets for anything but success, and what OpenAPI says.

Owns their shape. Leaves which failure is which to `failures`.
"""

import uuid
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from handler import failures, logs

PROBLEM = "application/problem+json"

# Written out, so that no schema is built before somebody asks for one.
_FIELDS = {"title": "string", "status": "integer", "detail": "string", "request_id": "string"}
_schema = {"title": "Problem", "type": "object", "required": list(_FIELDS)}
_properties = {"properties": {name: {"type": kind} for name, kind in _FIELDS.items()}}
_content = {PROBLEM: {"schema": _schema | _properties}}
_DETAIL = {
    500: "This should not have happened.",
    503: "The database is not available.",
    504: "The database took too long.",
}


def described(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """For a route's `responses`: these failures, and those that any route may have."""
    return {
        status: {"description": HTTPStatus(status).phrase, "content": _content}
        for status in (*statuses, 500, 503, 504)
    }


def body(status: int, detail: str, context: Any) -> dict[str, Any]:
    """`request_id` is the one in the log: Lambda's, from its `context`, where there is one."""
    return {
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
        "request_id": getattr(context, "aws_request_id", None) or str(uuid.uuid4()),
    }


def install(app: FastAPI) -> None:
    """Answer whatever `app` raises with a problem."""
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _bug)
    app.add_exception_handler(failures.DatabaseError, _database_error)


def respond(
    request: Request, status: int, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    content = body(status, detail, request.scope.get("aws.context"))
    return JSONResponse(content, status, headers, media_type=PROBLEM)


async def _http_error(request: Request, error: Any) -> JSONResponse:
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:  # Starlette names its first match's
        here = [r for r in request.app.routes if r.matches(request.scope)[0].value]
        headers["Allow"] = ", ".join(sorted({method for route in here for method in route.methods}))
    return respond(request, error.status_code, error.detail, headers)


async def _invalid(request: Request, error: Any) -> JSONResponse:
    status, faults = HTTPStatus.UNPROCESSABLE_ENTITY, []
    for each in error.errors():
        where, what = each["loc"][-1], each["msg"]
        if each["type"] == "string_pattern_mismatch":
            what = "holds a character that is not allowed"  # rather than the pattern
        if each["type"] == "json_invalid":
            where = "body"  # rather than a position in it
        if each["type"] == "json_invalid" or each["loc"][0] == "header":
            status = HTTPStatus.BAD_REQUEST  # it cannot be understood, whatever its values
        faults.append(f"{where}: {what}")
    return respond(request, status, "; ".join(faults))


async def _bug(request: Request, error: Exception) -> JSONResponse:
    logs.failed(type(error).__name__, "see its traceback in the log")
    return respond(request, 500, _DETAIL[500])


async def _database_error(request: Request, error: Any) -> JSONResponse:
    failure = error.failure
    logs.failed(failure.fault, failure.remedy, failure.sqlstate)
    headers = {"Retry-After": str(failure.retry_after)} if failure.retry_after else None
    return respond(request, failure.status, _DETAIL[failure.status], headers)
