"""Compares, classifies and describes the responses of a function."""

import contextlib
import json
import math
import re
from typing import Any

from infra.local.fleet import InvocationResult

#: The folders of Python files, as in the repr of a task, which are this machine's.
FOLDERS = re.compile(r"""/[^\s"':]*/(?=[^\s"'/]+\.py\b)""")


def content(payload: Any) -> Any:
    """Return the status and body of an HTTP response, and any other payload unchanged.

    Headers are left out, because they may contain a date or the request's id.
    """
    if not isinstance(payload, dict) or "statusCode" not in payload:
        return payload
    body: Any = payload.get("body")
    with contextlib.suppress(TypeError, ValueError):
        body = json.loads(body)
    return {"statusCode": payload["statusCode"], "body": body}


def are_equal(expected: Any, actual: Any) -> bool:
    """Compare two JSON values; 5 equals 5.0."""
    if isinstance(expected, bool) or isinstance(actual, bool):
        return expected is actual
    if isinstance(expected, int | float) and isinstance(actual, int | float):
        return math.isclose(expected, actual, rel_tol=1e-6)
    if isinstance(expected, dict) and isinstance(actual, dict):
        return expected.keys() == actual.keys() and all(
            are_equal(expected[key], actual[key]) for key in expected
        )
    if isinstance(expected, list) and isinstance(actual, list):
        return len(expected) == len(actual) and all(map(are_equal, expected, actual))
    return bool(expected == actual)


def status(result: InvocationResult) -> int | None:
    """Return the HTTP status, or None for a response without one."""
    code = result.payload.get("statusCode") if isinstance(result.payload, dict) else None
    return code if isinstance(code, int) else None


def has_failed(result: InvocationResult) -> bool:
    """Return whether the function raised an error or responded with a 5xx status."""
    return result.error is not None or (status(result) or 200) >= 500


def describe(result: InvocationResult) -> str:
    """Return the response as one line, without a traceback and without folders."""
    payload = result.payload if isinstance(result.payload, dict) else {}
    if result.error is not None:
        kind = payload.get("errorType") or result.error
        text = f"{kind}: {payload.get('errorMessage', result.payload)}"
    elif "statusCode" in payload:
        text = f"status {payload['statusCode']}: {payload.get('body')}"
    else:
        text = json.dumps(result.payload)
    text = FOLDERS.sub("", text.partition("Traceback (most recent call last)")[0])
    return " ".join(text.split())[:300]
