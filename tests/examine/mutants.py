"""The handler without one property: `tests.examine.mutants.NAME` for each that is examined.

Each is made when it is first asked for, which is in a sandbox of its own.
"""

import asyncio
import fcntl
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

Handler = Callable[[Any, Any], Any]

#: How long the import of one that starts slowly takes, in seconds.
SLOW_START_S = 2.5
#: How many processes of one that counts them may live at once: as many as an examined deployment
#: begins with.
SEATS = 8


def _with_first(handler: Any, work: Callable[[], Any]) -> Handler:
    """The handler, which in the first event of a process does some work besides."""
    done: list[bool] = []

    def handle(event: Any, context: Any) -> Any:
        answer = handler(event, context)
        if not done:
            done.append(True)
            handler.loop.run(work)
        return answer

    return handle


async def _connect(**options: Any) -> Any:
    """A connection beside the engine's, as the engine would be logged in."""
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
    from handler.main import handler

    time.sleep(SLOW_START_S)
    return handler


def _events() -> Any:
    """A loop for each event: the pool's connection belongs to the first."""
    from handler.main import handler

    def handle(event: Any, context: Any) -> Any:
        answer = handler(event, context)
        handler.loop.close()
        return answer

    return handle


def _round_trips() -> Any:
    from handler.warm.database import engine

    patched: Any = engine
    patched.create_async_engine = partial(patched.create_async_engine, pool_pre_ping=True)
    from handler.main import handler

    return handler


def _transactions() -> Any:
    from handler.main import handler
    from handler.warm.database import engine

    kept: list[Any] = []

    async def begin() -> None:
        connection = await _connect()
        kept.append(connection)
        await connection.execute("BEGIN")

    dispose = engine.dispose

    async def dispose_all() -> None:
        for connection in kept:
            await connection.close(timeout=0.1)
        await dispose()

    engine.dispose = dispose_all
    return _with_first(handler, begin)


def _session_state() -> Any:
    from sqlalchemy import event

    from handler.main import handler
    from handler.warm import get_engine

    @event.listens_for(get_engine().sync_engine, "connect")
    def set_parameter(connection: Any, record: Any) -> None:
        connection.run_async(lambda driver: driver.execute("SET work_mem = '8MB'"))

    return handler


def _pooling() -> Any:
    from handler.warm.database import connection

    connection.OPTIONS["statement_cache_size"] = 100
    from handler.main import handler

    return handler


def _frozen() -> Any:
    """A statement that is prepared and never executed pins a server connection."""
    from handler.main import handler
    from handler.warm.database import engine

    kept: list[Any] = []

    async def prepare() -> None:
        connection = await _connect()
        kept.append((connection, await connection.prepare("SELECT 1")))

    dispose = engine.dispose

    async def dispose_all() -> None:
        for connection, _ in kept:
            await connection.close(timeout=0.1)
        await dispose()

    engine.dispose = dispose_all
    return _with_first(handler, prepare)


def _thaw() -> Any:
    from handler.warm import request_policy
    from handler.warm.database import liveness

    liveness.was_closed = lambda raw: False

    async def without_retry(attempt: Any, is_safe: Any) -> Any:
        return await attempt()

    request_policy.with_retry = without_retry
    from handler.main import handler

    return handler


def _shutdown() -> Any:
    from handler.warm.aws_lambda import adapter

    patched: Any = adapter
    patched.call_at_shutdown = lambda shut_down: None
    from handler.main import handler

    return handler


def _deployment() -> Any:
    """One that works in so many processes at a time and no more, as a licence may have it."""
    from handler.main import handler

    folder = Path(tempfile.gettempdir()) / "warm-engine-examine-seats"
    folder.mkdir(exist_ok=True)
    taken: list[Any] = []
    for number in range(SEATS):
        seat = (folder / str(number)).open("w")
        try:
            fcntl.flock(seat, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            seat.close()
            continue
        taken.append(seat)
        break

    def handle(event: Any, context: Any) -> Any:
        if not taken:
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
    from handler.warm import request_policy

    request_policy.seconds_left = lambda context: 3600.0
    from handler.main import handler

    return handler


def _exhaustion() -> Any:
    """What PgBouncer has no room for is asked for three times."""
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
    """A description that is no longer true counts as true."""
    from handler.warm.database import protocol

    protocol._columns = lambda row: []
    from handler.main import handler

    return handler


def _memory() -> Any:
    from handler.main import handler

    kept: list[bytes] = []

    def handle(event: Any, context: Any) -> Any:
        kept.append(b"x" * 20_000)
        return handler(event, context)

    return handle


def __getattr__(name: str) -> Any:
    make = globals().get(f"_{name}")
    if make is None or name.startswith("_"):
        raise AttributeError(name)
    handler = make()
    globals()[name] = handler
    return handler
