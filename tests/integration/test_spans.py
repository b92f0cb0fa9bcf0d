"""With an OpenTelemetry SDK, connections and statements have spans, which contain no values."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import text

from handler.warm import run
from handler.warm.database.spans import without_values
from infra.database.roles import APP
from infra.local.stack import DATABASE, Stack
from tests.conftest import ColdHandler, set_environment
from tests.events import http_api
from tests.integration.failing_fleet import BLOCKED_SESSIONS

READ = http_api("GET", "/orders/1")
SEGMENT = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
TRACE, PARENT = int("5759e988bd862e3fe1be46a994272793", 16), int("53995c3f42cd8ad8", 16)


class Context:
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def get_remaining_time_in_millis(self) -> int:
        return int(self._seconds * 1000)


class TracedRuntime(ColdHandler):
    """The handler with an SDK that keeps its spans in memory."""

    def __init__(self, exporter: InMemorySpanExporter) -> None:
        self._exporter = exporter

    def begin(self, event: Any, context: Any = None) -> "Future[dict[str, Any]]":
        return super().begin(event, context or Context(10))

    def spans(self) -> list[ReadableSpan]:
        """Return the spans that ended since the last call, by start time."""
        result = sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)
        self._exporter.clear()
        return result


@pytest.fixture
def runtime(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[TracedRuntime]:
    """Start a handler with an SDK. The parameter is a dictionary of environment variables."""
    trace_header = {"_X_AMZN_TRACE_ID": SEGMENT}
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    # `set_tracer_provider` works once per process.
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    set_environment(monkeypatch, stack.environment() | trace_header | getattr(request, "param", {}))
    with TracedRuntime(exporter) as traced:
        yield traced
    provider.shutdown()


def database_spans(spans: list[ReadableSpan]) -> list[ReadableSpan]:
    return [span for span in spans if span.kind is SpanKind.CLIENT]


def is_of_lambda(span: ReadableSpan) -> bool:
    """Return whether the span's parent is Lambda's own segment."""
    parent = span.parent
    return parent is not None and (parent.trace_id, parent.span_id) == (TRACE, PARENT)


def is_below(span: ReadableSpan, ancestor: ReadableSpan, spans: list[ReadableSpan]) -> bool:
    """Return whether `ancestor` is above the span in the same trace."""
    by_id = {other.context.span_id: other for other in [ancestor, *spans] if other.context}
    while span is not ancestor:
        if span.parent is None or span.parent.trace_id != TRACE:
            return False
        span = by_id[span.parent.span_id]
    return True


def attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


def names(spans: list[ReadableSpan]) -> list[str]:
    return [span.name for span in spans]


def test_a_cold_read_has_connect_and_select_spans_in_the_lambda_trace(
    runtime: TracedRuntime, stack: Stack
) -> None:
    assert runtime(READ)["statusCode"] == 200
    spans = runtime.spans()
    assert spans[0].name == "GET /orders/{order_id}"
    assert is_of_lambda(spans[0])
    connect, select = database_spans(spans)
    assert (connect.name, select.name) == ("connect", f"SELECT {DATABASE}")
    for span in (connect, select):
        assert is_below(span, spans[0], spans)
        assert span.status.status_code is StatusCode.UNSET
        values = attributes(span)
        assert values["db.system.name"] == "postgresql"
        assert values["db.namespace"] == DATABASE
        assert values["server.address"] == stack.pgbouncer.host
        assert values["server.port"] == stack.pgbouncer.port
        assert values["warm_engine.retries"] == 0
    assert attributes(select)["db.operation.name"] == "SELECT"
    statement = attributes(select)["db.query.text"]
    assert statement.startswith("SELECT orders.id, ")
    assert "WHERE orders.id = $1" in statement
    assert attributes(select)["warm_engine.pool_wait_ms"] >= 0


def test_a_warm_read_has_one_statement_span(runtime: TracedRuntime) -> None:
    runtime(READ)
    runtime.spans()
    runtime(READ)
    request, *others = runtime.spans()
    [select] = database_spans(others)
    assert is_below(select, request, others)
    assert attributes(select)["warm_engine.pool_wait_ms"] >= 0


async def pid_of_blocked_backend(admin: Any) -> int:
    """Wait until a backend waits for the lock, and return its process id."""
    pids = BLOCKED_SESSIONS.replace("count(*)", "max(pid)")
    async with asyncio.timeout(5):
        while not (pid := await admin.fetchval(pids, APP)):
            await asyncio.sleep(0.01)
    return int(pid)


@asynccontextmanager
async def locked_orders(runtime: TracedRuntime, locker: Any) -> AsyncIterator[None]:
    """Warm the runtime up, discard its spans and lock the orders for the duration of the block."""
    await asyncio.wrap_future(runtime.begin(READ))
    runtime.spans()
    async with locker.transaction():
        await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        yield


async def test_a_retried_read_is_marked_in_its_span(
    runtime: TracedRuntime, admin: Any, locker: Any
) -> None:
    async with locked_orders(runtime, locker):
        invocation = runtime.begin(READ)
        await admin.execute("SELECT pg_terminate_backend($1)", await pid_of_blocked_backend(admin))
    assert (await asyncio.wrap_future(invocation))["statusCode"] == 200
    first, *others = database_spans(runtime.spans())
    assert first.status.status_code is StatusCode.ERROR
    assert attributes(first)["error.type"]
    assert attributes(first)["warm_engine.retries"] == 0
    assert names(others) == ["connect", f"SELECT {DATABASE}"]
    assert [attributes(span)["warm_engine.retries"] for span in others] == [1, 1]
    assert not [span for span in others if span.status.status_code is StatusCode.ERROR]


async def test_a_504_ends_the_statement_span_with_an_error(
    runtime: TracedRuntime, admin: Any, locker: Any
) -> None:
    async with locked_orders(runtime, locker):
        response = await asyncio.wrap_future(runtime.begin(READ, Context(1)))
    assert response["statusCode"] == 504
    spans = runtime.spans()
    [select] = database_spans(spans)
    assert select.status.status_code is StatusCode.ERROR
    assert attributes(select)["error.type"] == "CancelledError"
    [request] = [span for span in spans if span.kind is SpanKind.SERVER]
    assert attributes(request)["http.response.status_code"] == 504


@pytest.mark.parametrize("runtime", [{"DB_PASS": "hunter2"}], indirect=True)
def test_a_rejected_login_ends_the_connect_span_with_its_sqlstate(runtime: TracedRuntime) -> None:
    assert runtime(READ)["statusCode"] == 503
    [connect] = database_spans(runtime.spans())
    assert connect.status.status_code is StatusCode.ERROR
    assert attributes(connect)["db.response.status_code"] == "08P01"
    assert "hunter2" not in connect.to_json()


def test_statements_of_a_scheduled_event_are_in_the_lambda_trace(runtime: TracedRuntime) -> None:
    runtime({"source": "aws.scheduler"})
    spans = runtime.spans()
    assert len(spans) == 2
    assert all(map(is_of_lambda, spans))


def test_the_lambda_trace_takes_precedence_over_the_caller_trace(runtime: TracedRuntime) -> None:
    traceparent = f"00-{'1' * 32}-{'2' * 16}-01"
    runtime(http_api("GET", "/health", traceparent=traceparent, TraceParent=traceparent))
    assert is_of_lambda(runtime.spans()[0])


@pytest.mark.parametrize("header", ["", "Root=1-2", "Root=1-x-y;Parent=z", "\n", "=;=;=", "Root"])
def test_an_invalid_trace_header_fails_no_request(
    runtime: TracedRuntime, monkeypatch: pytest.MonkeyPatch, header: str
) -> None:
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    assert runtime(READ)["statusCode"] == 200
    assert len(database_spans(runtime.spans())) == 2


def test_spans_contain_no_values(runtime: TracedRuntime) -> None:
    """This includes the literals of a failing statement, which Postgres' message quotes."""

    async def work() -> None:
        statement = text("SELECT 'hunter2'::integer, 4711, $$also secret$$ -- 4712")
        with pytest.raises(Exception, match="value is invalid or out of range"):
            await run(lambda session: session.execute(statement), autocommit=True)

    runtime.run(work)
    spans = database_spans(runtime.spans())
    assert spans[-1].status.status_code is StatusCode.ERROR
    exported = "".join(span.to_json() for span in spans)
    assert attributes(spans[-1])["db.query.text"].startswith("SELECT ?")
    for secret in ("hunter2", "4711", "4712", "also secret"):
        assert secret not in exported


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT a1 FROM t2\n WHERE id = $1::INTEGER", "SELECT a1 FROM t2 WHERE id = $1::INTEGER"),
        ("SELECT 1, 2.5, 1e3, 0x1F", "SELECT ?, ?, ?, ?"),
        (r"SELECT 'a\', 'b' FROM t", "SELECT ? FROM t"),
        (r"SELECT E'a\'b', 'c'", "SELECT E?"),
        ("SELECT $tag$ it's $tag$", "SELECT ?"),
        ("SELECT /* 5 ' */ x -- ' secret", "SELECT ?"),
        ("SELECT '", "SELECT '"),
    ],
)
def test_literals_are_removed_from_statements(statement: str, expected: str) -> None:
    assert without_values(statement).startswith(expected)
    assert "secret" not in without_values(statement)


def test_no_span_is_created_without_an_sdk(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", None)
    set_environment(monkeypatch, stack.environment())

    def start(*_: Any, **__: Any) -> None:
        raise AssertionError("a span without an SDK")

    monkeypatch.setattr(trace.ProxyTracer, "start_span", start)
    monkeypatch.setattr(trace.NoOpTracer, "start_span", start)
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 200
