"""Tracing with the OpenTelemetry API, which FastAPI depends on.

Spans are created and exported only if the process has configured an SDK.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, propagate, trace
from opentelemetry.context import Context
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags
from opentelemetry.util.types import AttributeValue

Headers = list[list[bytes]]


def is_on() -> bool:
    """Return whether an SDK is configured. No warm request calls it, so that none costs more
    without an SDK."""
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def start_span(name: str, attributes: dict[str, AttributeValue]) -> trace.Span:
    """Start the span of a call to another system."""
    tracer = trace.get_tracer("warm_engine")
    return tracer.start_span(name, kind=SpanKind.CLIENT, attributes=attributes)


def end_span(span: trace.Span, error: BaseException | None = None) -> None:
    """End the span. Record the type of an error, not its message, which may contain a value."""
    if error is not None:
        span.set_attribute("error.type", type(error).__qualname__)
        if state := getattr(error, "sqlstate", None):
            span.set_attribute("db.response.status_code", state)
        span.set_status(StatusCode.ERROR)
    span.end()


@contextmanager
def invocation() -> Iterator[None]:
    """Attach the block's spans to Lambda's trace, unless a wrapper around the handler has already
    started a span."""
    if trace.get_current_span().get_span_context().is_valid:
        yield
        return
    token = context.attach(_lambda_segment(os.environ.get("_X_AMZN_TRACE_ID", "")))
    try:
        yield
    finally:
        context.detach(token)


def _lambda_segment(header: str) -> Context:
    """Return a context with Lambda's segment as the parent: `Root=1-…;Parent=…;Sampled=1`.

    Without a valid header, return the current context.
    """
    parts = dict(part.partition("=")[::2] for part in header.split(";"))
    try:
        _, seconds, rest = parts.get("Root", "").split("-")
        parent = SpanContext(
            trace_id=int(seconds + rest, 16),
            span_id=int(parts.get("Parent", ""), 16),
            is_remote=True,
            trace_flags=TraceFlags(parts.get("Sampled") == "1"),
        )
    except ValueError:  # no header, or a malformed one from a caller
        return context.get_current()
    return trace.set_span_in_context(trace.NonRecordingSpan(parent))


def replace_trace_headers(headers: Headers) -> Headers:
    """Return the headers with the current trace instead of the caller's: FastAPI's instrumentation
    reads the parent of its span from them."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    current = {name.lower().encode(): value.encode() for name, value in carrier.items()}
    return [h for h in headers if h[0].lower() not in current] + [list(h) for h in current.items()]
