"""Formats of the log line: times, ids and failures."""

import os
import re
import time
from functools import lru_cache
from typing import TypeGuard

from handler.warm import log_safety
from handler.warm.errors import Failure

#: The format of the request ids of Lambda and API Gateway.
_ID = re.compile(r"[\w=.-]{1,64}", re.ASCII)
#: Strict, because a caller can set part of a trace header.
_TRACE = re.compile(r"(?:^|;)Root=(1-[0-9a-f]{8}-[0-9a-f]{24})(?:;|$)")


def is_id(text: object) -> TypeGuard[str]:
    """Return whether `text` has the format of AWS's ids; what a caller sends may be anything."""
    return isinstance(text, str) and _ID.fullmatch(text) is not None


def rfc3339(seconds: float) -> str:
    """Return a Unix time in seconds as text in UTC, to the millisecond."""
    days, rest = divmod(int(seconds * 1000), 86_400_000)
    minutes, milliseconds = divmod(rest, 60_000)
    clock = f"{minutes // 60:02d}:{minutes % 60:02d}:{milliseconds // 1000:02d}"
    return f"{_date(days)}T{clock}.{milliseconds % 1000:03d}Z"


@lru_cache(maxsize=1)
def _date(days: int) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(days * 86_400))


def trace_id() -> str | None:
    """Return the X-Ray trace id that Lambda sets for this invocation."""
    match = _TRACE.search(os.environ.get("_X_AMZN_TRACE_ID", ""))
    return match[1] if match else None


def description_of(failure: Failure) -> dict[str, str | None]:
    """Return the fields of the line that describe a failure."""
    cause, hint = log_safety.escape(failure.cause), log_safety.escape(failure.hint)
    return {"cause": cause, "hint": hint, "sqlstate": failure.sqlstate}


def fields_of(failure: Failure) -> dict[str, str | None]:
    """Return a failure's name and description, for a log record other than the line."""
    return {"failure": failure.name, **description_of(failure)}
