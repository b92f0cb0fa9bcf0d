"""Whether two answers of a function say the same."""

import contextlib
import json
import math
from typing import Any

from infra.local.fleet import InvocationResult


def content(payload: Any) -> Any:
    """What an answer says: status and body of an HTTP answer, without its headers, which may hold a
    date or the request's id; any other answer as it is."""
    if not isinstance(payload, dict) or "statusCode" not in payload:
        return payload
    body: Any = payload.get("body")
    with contextlib.suppress(TypeError, ValueError):
        body = json.loads(body)
    return {"statusCode": payload["statusCode"], "body": body}


def same(one: Any, other: Any) -> bool:
    """Whether two JSON values are equal; 5 equals 5.0."""
    if isinstance(one, bool) or isinstance(other, bool):
        return one is other
    if isinstance(one, int | float) and isinstance(other, int | float):
        return math.isclose(one, other, rel_tol=1e-6)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def status(answer: InvocationResult) -> int | None:
    """The HTTP status; None for an answer that has none."""
    if isinstance(answer.payload, dict):
        code = answer.payload.get("statusCode")
        return code if isinstance(code, int) else None
    return None


def failed(answer: InvocationResult) -> bool:
    """Whether a caller would count it as a failure: an error of the function, or a 5xx."""
    return answer.error is not None or (status(answer) or 200) >= 500


def described(answer: InvocationResult) -> str:
    """An answer in one line, for a message. Without a traceback, whose paths are this machine's."""
    payload = answer.payload if isinstance(answer.payload, dict) else {}
    if answer.error is not None:
        kind = payload.get("errorType") or answer.error
        text = f"{kind}: {payload.get('errorMessage', answer.payload)}"
    elif "statusCode" in payload:
        text = f"status {payload['statusCode']}: {payload.get('body')}"
    else:
        text = json.dumps(answer.payload)
    return " ".join(text.partition("Traceback (most recent call last)")[0].split())[:300]
