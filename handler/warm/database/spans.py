"""Database spans: one for each new connection and one for each statement.

Names follow OpenTelemetry's semantic conventions for database client spans.
"""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

from opentelemetry.util.types import AttributeValue
from sqlalchemy import Engine, event

from handler.warm import log_line, tracing
from handler.warm.settings import Settings

#: Comments, and text from the first single or dollar quote to the last: each may hold a value.
_QUOTED = re.compile(r"'.*'|\$\w*[A-Za-z_]?\w*\$.*\$|/\*.*\*/|--[^\n]*", re.DOTALL)
_NUMBER = re.compile(r"(?<![\w$.])\d[\w.]*")


@lru_cache(maxsize=256)
def without_values(statement: str) -> str:
    """Return `statement` on one line, with `?` for what may be a value; placeholders stay."""
    return " ".join(_NUMBER.sub("?", _QUOTED.sub("?", statement)).split())


def _attributes(settings: Settings) -> dict[str, AttributeValue]:
    return {
        "db.system.name": "postgresql",
        "db.namespace": settings.name,
        "server.address": settings.host,
        "server.port": settings.port,
        "warm_engine.retries": log_line.current().retries,
    }


@contextmanager
def connecting(settings: Settings) -> Iterator[None]:
    """Record the block as a span, if an SDK is configured."""
    if not tracing.is_on():
        yield
        return
    span = tracing.start_span("connect", _attributes(settings))
    try:
        yield
    except BaseException as error:
        tracing.end_span(span, error)
        raise
    tracing.end_span(span)


def watch(engine: Engine, settings: Settings) -> None:
    """Record each statement of `engine` as a span, if an SDK is configured."""
    if not tracing.is_on():
        return

    def begin(connection: Any, _: Any, statement: str, __: Any, execution: Any, ___: Any) -> None:
        text = without_values(statement)
        operation = text.partition(" ")[0].upper()
        attributes = _attributes(settings) | {
            "db.operation.name": operation,
            "db.query.text": text,
        }
        # Only on the first statement after a checkout: how long the pool took to provide it.
        waited = connection.connection.record_info.pop("pool_wait_ms", None)
        if waited is not None:
            attributes["warm_engine.pool_wait_ms"] = waited
        execution.warm_span = tracing.start_span(f"{operation} {settings.name}", attributes)

    event.listen(engine, "before_cursor_execute", begin)
    event.listen(engine, "after_cursor_execute", _end)
    event.listen(engine, "handle_error", _fail)
    event.listen(engine, "checkout", _note_wait)


def _end(_: Any, __: Any, ___: Any, ____: Any, execution: Any, _____: Any) -> None:
    if span := vars(execution).pop("warm_span", None):
        tracing.end_span(span)


def _fail(failed: Any) -> None:
    execution = failed.execution_context
    if execution is not None and (span := vars(execution).pop("warm_span", None)):
        # The driver's error, whose class has the specific name; it has the SQLSTATE as well.
        cause = failed.original_exception.__cause__ or failed.original_exception
        tracing.end_span(span, cause)


def _note_wait(_: Any, record: Any, __: Any) -> None:
    line = log_line.current()
    if line.begun_at:
        waited = (time.perf_counter() - line.begun_at) * 1000
        connected = line.connect_ms - line.connected_before
        record.record_info["pool_wait_ms"] = round(max(waited - connected, 0), 2)
