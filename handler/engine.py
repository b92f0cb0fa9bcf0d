"""The one engine of a runtime.

Owns how many connections are kept, for how long, and how a statement travels: a warm read costs
exactly one round trip. Leaves how a connection is made to `connection`, what is asked to `orders`,
and when to dispose to whoever hosts it.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import random
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any, TypeVar

import asyncpg
from sqlalchemy import event, text
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from handler import dialect, failures, logs
from handler.connection import connector, was_closed
from handler.settings import Settings, load

log = logging.getLogger(__name__)
T = TypeVar("T")


def create_engine(settings: Settings, **options: Any) -> AsyncEngine:
    """An engine for `settings`; `options` go to SQLAlchemy's `create_async_engine`.

    Nothing is connected yet. The URL names only the dialect and the driver: where to connect, as
    whom and how is the creator's business, for each raw connection anew.

    Raises SettingsError when the CA file cannot be used.
    """
    engine = create_async_engine(
        f"{dialect.NAME}://",
        async_creator=connector(settings),
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout,
        pool_recycle=settings.pool_recycle,
        # A read is one statement and needs no transaction: BEGIN and ROLLBACK would be two more
        # round trips, and a sandbox frozen between them would pin a server connection.
        isolation_level="AUTOCOMMIT",
        # An error's text, which ends in a log, would quote what customers sent.
        hide_parameters=True,
        **options,
    )
    event.listen(engine.sync_engine, "checkin", _note_idle)
    event.listen(engine.sync_engine, "checkout", partial(_check_alive, settings.max_idle))
    event.listen(engine.sync_engine, "handle_error", _drop_half_asked)
    if settings.sql_token:
        token = settings.sql_token.get_secret_value().encode()
        event.listen(engine.sync_engine, "before_cursor_execute", partial(_show, token))
    return engine


def _show(token: bytes, _: Any, __: Any, statement: str, *values: Any) -> None:
    """Log what a request with the token asks; never its values, and nothing of its neighbours."""
    if hmac.compare_digest(token, logs.sql_asked.get()):
        logs.sql.debug("%s", " ".join(statement.split()))


def _drop_half_asked(context: Any) -> None:
    """What Postgres says ends with Sync; what fails in the driver does not. A value that it cannot
    send fails after Parse, and the connection would pin its server connection in PgBouncer; a row
    that it cannot read would be as unreadable the next time. The end of a client frees both."""
    cause = getattr(context.original_exception, "driver_exception", context.original_exception)
    if not isinstance(cause, asyncpg.PostgresError) or cause.sqlstate == "22000":
        context.is_disconnect = True


def _note_idle(_: Any, record: Any) -> None:
    record.info["idle_since"] = time.time()


def _check_alive(max_idle: float, connection: Any, record: Any, _: Any) -> None:
    """Drop a connection that was closed, or may have been, while nobody used it; without the round
    trip of `pool_pre_ping`. By the wall clock: others stand still while a sandbox is frozen."""
    if "idle_since" not in record.info:
        return  # just made; whatever ends it now is the query's to tell
    raw = connection.driver_connection
    idle = time.time() - record.info["idle_since"]
    if idle > max_idle or was_closed(raw):
        raw.terminate()  # a polite close would wait for an answer
        raise DisconnectionError("closed while idle")  # the pool makes another


@cache
def engine() -> AsyncEngine:
    """This runtime's engine, made at the first call and kept. Raises SettingsError."""
    return create_engine(load())


def session() -> AsyncSession:
    """A session of this runtime's engine. Raises SettingsError."""
    # Without expire_on_commit=False, reading an attribute after a commit is a hidden query and
    # raises MissingGreenlet.
    return AsyncSession(engine(), expire_on_commit=False)


async def run(work: Callable[[Session], T]) -> T:
    """Do `work` in a session of its own, and once more where a new connection may mend what went
    wrong: so it must be one that may be done twice, a read or a write under a key. Each statement
    is a transaction of its own, unless `work` first gives its session's connection another
    isolation level. Raises DatabaseError."""
    try:
        return await _run(work)
    except failures.DatabaseError as error:
        if not error.failure.again:
            raise
        log.warning("trying again: %s", error.failure.fault)
    # A fleet whose PgBouncer went away comes back spread out.
    await asyncio.sleep(random.uniform(0, 0.1))  # noqa: S311  # no secret depends on it
    return await _run(work)


async def _run(work: Callable[[Session], T]) -> T:
    # One greenlet from the session's first statement to its close. AsyncSession's own methods make
    # one each, and a task to close it: a quarter of a warm request's CPU.
    def in_session(sync: Session) -> T:
        with sync:
            return work(sync)

    try:
        logs.current().attempts += 1
        with logs.timing("query_ms"):
            return await session().run_sync(in_session)
    except failures.RAISED as error:
        raise failures.DatabaseError(failures.classify(error)) from error


async def ping() -> None:
    """One round trip to Postgres and back. Raises DatabaseError."""
    await run(lambda session: session.execute(text("SELECT 1")))


async def prewarm() -> None:
    """Fill the pool before the first query, as `DB_PREWARM` says. A failure is logged, and the
    first query tries again; where it is `required`, it is raised, and ends the start."""
    settings = load()
    if settings.prewarm == "off":
        return

    async def open_one() -> None:
        async with engine().connect() as connection:
            # To the end: a statement that is only prepared pins a server connection in PgBouncer.
            await connection.execute(text("SELECT 1"))

    opening = (open_one() for _ in range(settings.pool_size))
    for error in filter(None, await asyncio.gather(*opening, return_exceptions=True)):
        if settings.prewarm == "required":
            raise error
        fault = failures.classify(error).fault
        log.warning("pre-warm failed, the first query tries again: %s", fault)
        return


async def dispose() -> None:
    """Close every pooled connection with a goodbye, so that Postgres frees its place at once, and
    forget every credential. Call it on the loop that served the queries. The next query makes
    another engine."""
    if engine.cache_info().currsize:
        await engine().dispose()
        engine.cache_clear()
