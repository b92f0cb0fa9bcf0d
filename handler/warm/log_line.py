"""The log line: one JSON object per invocation, on stdout, with the fields of Lambda's JSON format.

docs/log-line.schema.json describes its fields. It never contains a value that a caller sent, a row
or a secret; `caller` is the identity that the gateway authenticated.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from json.encoder import encode_basestring_ascii
from typing import Any, Literal

from handler.warm import log_format, log_safety
from handler.warm.errors import Failure, FailureName
from handler.warm.metrics import MetricBlock

Outcome = Literal["ok", "refused", "failed", "late", "cancelled"]


@dataclass
class Invocation:
    """The fields of one line; those that are None are omitted."""

    request_id: str | None = None  # Lambda's, as in problem documents
    cold_start: bool = False
    api_request_id: str | None = None  # API Gateway's, as in its access log
    route: str | None = None  # the path template, or `unmatched`; None: no HTTP event
    status: int | None = None
    outcome: Outcome | None = None  # late: past the deadline; cancelled: by a shutdown
    attempts: int = 0  # units of work started on the database, including retries
    retries: int = 0
    connections: int = 0  # opened
    connect_ms: float = 0  # 0 if a pooled connection was used
    query_ms: float = 0  # in database blocks, with connecting, which `_write` subtracts
    failure: Failure | None = None
    caller: str | None = None
    #: When the latest attempt started, and `connect_ms` at that time, to compute the pool's wait.
    begun_at: float = 0
    connected_before: float = 0


log = logging.getLogger(__name__)
log_safety.install()
# At INFO Mangum logs an extra line for each request.
logging.getLogger("mangum.http").setLevel(logging.WARNING)
_current: ContextVar[Invocation | None] = ContextVar("invocation", default=None)
_served = 0
_metrics: MetricBlock | None = None


def set_namespace(namespace: str | None) -> None:
    """Add metrics in the CloudWatch namespace `namespace` to each line, or none if it is None."""
    global _metrics
    function = os.environ.get("AWS_LAMBDA_FUNCTION_NAME", "local")
    version = os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST")
    _metrics = MetricBlock(namespace, function, version) if namespace else None


def current() -> Invocation:
    """Return the running invocation; outside of one (a script, uvicorn), an unused object."""
    return _current.get() or Invocation()


def set_caller(caller: str | None) -> None:
    """Add the authenticated caller to the line; None omits it."""
    current().caller = None if caller is None else log_safety.escape(caller[:256])


def begin_request(context: object) -> None:
    """Mark the invocation as an HTTP request with API Gateway's id from the request context."""
    line, request_id = current(), context.get("requestId") if isinstance(context, dict) else None
    line.route = "unmatched"  # until a route is found
    if log_format.is_id(request_id):
        line.api_request_id = request_id


def invocation(request_id: str | None, serve: Callable[[], Mapping[str, Any]]) -> Mapping[str, Any]:
    """Call `serve`, return its result, and write the line whether it returns or raises."""
    global _served
    line, started = Invocation(request_id, cold_start=_served == 0), time.perf_counter()
    _served += 1
    token = _current.set(line)
    raised = None
    try:
        response = serve()
        line.status = response.get("statusCode")
        return response
    except BaseException as error:
        raised = type(error).__name__  # not the message, which may contain values
        raise
    finally:
        _current.reset(token)
        _write(line, (time.perf_counter() - started) * 1000, raised)


def _write(line: Invocation, duration_ms: float, raised: str | None) -> None:
    if raised and line.failure is None:
        line.failure = Failure(raised, "see its traceback in the log")
    code = line.status or (500 if line.failure else 200)
    if raised or code >= 500:
        level, outcome = "ERROR", line.outcome or "failed"
    else:
        level = "WARN" if code >= 400 or line.retries or line.failure else "INFO"
        outcome = line.outcome or ("refused" if code >= 400 else "ok")
    name: FailureName | None = line.failure.name if line.failure else None
    if level == "ERROR" and name is None:
        name = "app"  # the app returned a 5xx
    # At least 0: a connection may also be opened outside a database block.
    now, queried = time.time(), max(line.query_ms - line.connect_ms, 0)
    # Formatted by hand for each invocation, because `json.dumps` takes three times as long.
    text = (
        f'{{"timestamp": "{log_format.rfc3339(now)}", "level": "{level}", "outcome": "{outcome}", '
        f'"coldStart": {"true" if line.cold_start else "false"}, '
        f'"durationMs": {duration_ms:.2f}, "connectMs": {line.connect_ms:.2f}, '
        f'"queryMs": {queried:.2f}, "connections": {line.connections}, '
        f'"attempts": {line.attempts}, "retries": {line.retries}'
    )
    if line.status is not None:
        text += f', "status": {line.status:d}'
    texts = {
        "requestId": line.request_id,
        "apiRequestId": line.api_request_id,
        "traceId": log_format.trace_id(),
        "route": line.route,
        "failure": name,
        "caller": line.caller,
    }
    if line.failure:
        texts |= log_format.description_of(line.failure)
    for field, value in texts.items():
        if value is not None:
            text += f', "{field}": {encode_basestring_ascii(value)}'
    if _metrics:
        connected, failed = line.connect_ms > 0, level == "ERROR"
        text += _metrics.members(
            now, line.route is not None, connected, line.attempts > 0, failed, line.cold_start
        )
    # If stdout is closed, only the line is lost, and the invocation does not fail.
    with suppress(OSError, ValueError):
        print(f"{text}}}", flush=True)


def attempting() -> None:
    """Count the start of a unit of work on the database."""
    line = current()
    line.attempts += 1
    line.begun_at, line.connected_before = time.perf_counter(), line.connect_ms


@contextmanager
def connecting() -> Iterator[None]:
    """Count the connection that the block opens and add the time it takes."""
    line, started = current(), time.perf_counter()
    try:
        yield
        line.connections += 1
    finally:
        line.connect_ms += (time.perf_counter() - started) * 1000


class QueryTime:
    """A context manager that adds the duration of its block to the query time."""

    def __enter__(self) -> None:
        self._started = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        current().query_ms += (time.perf_counter() - self._started) * 1000


def failed(failure: Failure) -> None:
    """Record a failure in the line; outside of an invocation, log it."""
    line = _current.get()
    if line is None:
        log.error("%s (%s)", failure.cause, failure.hint, extra=log_format.fields_of(failure))
    else:
        line.failure = failure


def warn(message: str, failure: Failure) -> None:
    """Log a failure that does not fail the invocation, with the line's fields for failures."""
    log.warning("%s: %s", message, failure.cause, extra=log_format.fields_of(failure))


def retrying(failure: Failure) -> None:
    """Count a retry and log the failure that caused it."""
    current().retries += 1
    warn("retrying", failure)
