"""Variants of the handler that lack one property: `tests.examine.mutants.NAME` for each property.

A mutant is created on first access, in its own sandbox, because most patch the engine's modules.
"""

import asyncio
import fcntl
import itertools
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Handler = Callable[[Any, Any], Any]

#: How long the import of `start` takes, in seconds.
SLOW_START_S = 2.5
#: How many processes of `deployment` may run at once: an examined deployment starts with as many.
SEATS = 8


def _with_first(handler: Any, work: Callable[[], Any]) -> Handler:
    """Return a handler that also runs `work` after the first event of its process."""
    has_run: list[bool] = []

    def handle(event: Any, context: Any) -> Any:
        response = handler(event, context)
        if not has_run:
            has_run.append(True)
            handler.loop.run(work)
        return response

    return handle


async def _connect(**options: Any) -> Any:
    """Open a second connection with the engine's login."""
    import asyncpg

    from handler.warm import load_settings
    from handler.warm.database.tls import tls_context

    settings = load_settings()
    return await asyncpg.connect(
        host=settings.host,
        port=settings.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        database=settings.name,
        ssl=tls_context(settings),
        statement_cache_size=0,
        **options,
    )


def _start() -> Any:
    """Import slowly."""
    from handler.main import handler

    time.sleep(SLOW_START_S)
    return handler


def _events() -> Any:
    """Fail at the second event, as a connection does that belongs to the first event's loop."""
    from handler.main import handler

    numbers = itertools.count(1)

    def handle(event: Any, context: Any) -> Any:
        if next(numbers) == 2:
            raise RuntimeError("the connection is attached to a different loop")
        return handler(event, context)

    return handle


def _round_trips() -> Any:
    """Ping the connection at each checkout."""
    from handler.warm.database import engine

    engine_module: Any = engine
    create = engine_module.create_async_engine
    engine_module.create_async_engine = partial(create, pool_pre_ping=True)
    from handler.main import handler

    return handler


def _transactions() -> Any:
    """Leave a transaction open."""
    from handler.main import handler
    from handler.warm.database import engine

    connections: list[Any] = []

    async def begin() -> None:
        connection = await _connect()
        connections.append(connection)
        await connection.execute("BEGIN")

    dispose = engine.dispose

    async def dispose_all() -> None:
        for connection in connections:
            await connection.close(timeout=0.1)
        await dispose()

    engine.dispose = dispose_all
    return _with_first(handler, begin)


def _session_state() -> Any:
    """SET a parameter for the session."""
    from sqlalchemy import event

    from handler.main import handler
    from handler.warm import get_engine

    @event.listens_for(get_engine().sync_engine, "connect")
    def set_parameter(connection: Any, record: Any) -> None:
        connection.run_async(lambda driver: driver.execute("SET work_mem = '8MB'"))

    return handler


def _pooling() -> Any:
    """Cache named statements, which another server connection does not have."""
    from handler.warm.database import connection

    connection.OPTIONS["statement_cache_size"] = 100
    from handler.main import handler

    return handler


def _frozen() -> Any:
    """Prepare a statement and never execute it, which pins a server connection."""
    from handler.main import handler
    from handler.warm.database import engine

    prepared: list[Any] = []

    async def prepare() -> None:
        connection = await _connect()
        prepared.append((connection, await connection.prepare("SELECT 1")))

    dispose = engine.dispose

    async def dispose_all() -> None:
        for connection, _ in prepared:
            await connection.close(timeout=0.1)
        await dispose()

    engine.dispose = dispose_all
    return _with_first(handler, prepare)


def _thaw() -> Any:
    """Use a connection that was closed while idle, and do not retry."""
    from handler.warm import request_policy
    from handler.warm.database import liveness

    liveness.was_closed = lambda raw: False

    async def without_retry(attempt: Any, is_safe: Any) -> Any:
        return await attempt()

    request_policy.with_retry = without_retry
    from handler.main import handler

    return handler


def _shutdown() -> Any:
    """Ignore SIGTERM."""
    from handler.warm.aws_lambda import adapter

    adapter_module: Any = adapter
    adapter_module.call_at_shutdown = lambda shut_down: None
    from handler.main import handler

    return handler


def _deployment() -> Any:
    """Work in SEATS processes at a time and no more, as a licence may allow."""
    from handler.main import handler

    folder = Path(tempfile.gettempdir()) / "warm-engine-examine-seats"
    folder.mkdir(exist_ok=True)
    seats: list[Any] = []
    for number in range(SEATS):
        seat = (folder / str(number)).open("w")
        try:
            fcntl.flock(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seat.close()
            continue
        seats.append(seat)
        break

    def handle(event: Any, context: Any) -> Any:
        if not seats:
            raise RuntimeError("no seat is free")
        return handler(event, context)

    return handle


def _restarts() -> Any:
    """A circuit breaker that opens at the first refused connection and never closes again."""
    import asyncpg

    from handler.main import handler

    connect = asyncpg.connect
    refusals: list[OSError] = []

    async def connect_and_record(**options: Any) -> Any:
        try:
            return await connect(**options)
        except OSError as error:
            refusals.append(error)
            raise

    def handle(event: Any, context: Any) -> Any:
        return {"statusCode": 503, "body": ""} if refusals else handler(event, context)

    patched: Any = asyncpg
    patched.connect = connect_and_record
    return handle


def _deadline() -> Any:
    """Assume an hour of remaining time."""
    from handler.warm import request_policy

    request_policy.seconds_left = lambda context: 3600.0
    from handler.main import handler

    return handler


def _exhaustion() -> Any:
    """Repeat a request twice when PgBouncer has no free server connection."""
    from handler.warm import request_policy
    from handler.warm.errors import DatabaseError

    with_retry: Any = request_policy.with_retry

    async def stubborn(attempt: Any, is_safe: Any) -> Any:
        for _ in range(2):
            try:
                return await with_retry(attempt, is_safe)
            except DatabaseError as error:
                if error.failure.name != "pooler_wait":
                    raise
                await asyncio.sleep(0)
        return await with_retry(attempt, is_safe)

    request_policy.with_retry = stubborn
    from handler.main import handler

    return handler


def _column_types() -> Any:
    """Accept an outdated description of a result's columns."""
    from handler.warm.database import protocol

    protocol._columns = lambda row: []
    from handler.main import handler

    return handler


def _memory() -> Any:
    """Leak 20 kB in each event."""
    from handler.main import handler

    leaked: list[bytes] = []

    def handle(event: Any, context: Any) -> Any:
        leaked.append(b"x" * 20_000)
        return handler(event, context)

    return handle


def __getattr__(name: str) -> Any:
    make = globals().get(f"_{name}")
    if make is None or name.startswith("_"):
        raise AttributeError(name)
    handler = make()
    globals()[name] = handler
    return handler
