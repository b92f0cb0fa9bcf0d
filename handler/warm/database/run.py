"""Running work on the database: `run` for a function, `session` for a block."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from types import CoroutineType
from typing import Any, Literal, TypeVar, get_args, overload

from sqlalchemy import text
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from handler.warm import log_line, request_policy
from handler.warm.database import cancellation, engine
from handler.warm.database.autocommit import run_in_autocommit
from handler.warm.errors import DatabaseError
from handler.warm.settings import load_settings

T = TypeVar("T")
Isolation = Literal["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"]

# Sessions have expire_on_commit=False: otherwise reading an attribute after a commit would send a
# query and raise MissingGreenlet.
_SET_TIMEOUT = text("SELECT set_config('statement_timeout', :milliseconds, true)")
#: The open sessions of this context, each as a list that is emptied when the session ends.
_open_sessions: ContextVar[tuple[list[None], ...]] = ContextVar("open_sessions", default=())


@overload
async def run(
    work: Callable[[Session], T], *, autocommit: Literal[True], idempotent: bool = False
) -> T: ...
@overload
async def run(
    work: Callable[[Session], T],
    *,
    idempotent: bool = False,
    isolation: Isolation = "READ COMMITTED",
    read_only: bool = False,
    statement_timeout: float | None = None,
) -> T: ...
async def run(
    work: Callable[[Session], Any],
    *,
    autocommit: bool = False,
    idempotent: bool = False,
    isolation: Isolation = "READ COMMITTED",
    read_only: bool = False,
    statement_timeout: float | None = None,
) -> Any:
    """Call `work` with a session, in one transaction, and return what it returns.

    Connecting, up to BEGIN, is retried if that is safe. Then `work` is called once: the transaction
    is committed if it returns and rolled back if it raises.

    `autocommit`: without a transaction each statement commits by itself, and a read is exactly one
    round trip. What needs a transaction raises InvalidRequestError.

    `idempotent`: allow a second call of `work` after a lost connection, a deadlock or a
    serialization failure. Set it for reads and for writes with an idempotency key.

    `isolation`, `read_only` and `statement_timeout` (in seconds, one more round trip) apply to this
    transaction only and do not stay on the server connection.

    Raises DatabaseError. Other exceptions of `work` are not changed.
    """
    if autocommit and (isolation != "READ COMMITTED" or read_only or statement_timeout is not None):
        raise TypeError(
            "isolation, read_only and statement_timeout cannot be used with autocommit=True"
        )
    if statement_timeout is not None:
        _check_timeout(statement_timeout)
    _check_can_connect()
    called = may_be_stored = False

    def in_transaction() -> Any:
        nonlocal called, may_be_stored
        with Session(engine.get_engine().sync_engine, expire_on_commit=False) as session:
            session.connection(execution_options=_options(isolation, read_only))
            called = True
            if statement_timeout is not None:
                milliseconds = round(statement_timeout * 1000)
                session.execute(_SET_TIMEOUT, {"milliseconds": str(milliseconds)})
            result = work(session)
            may_be_stored = not idempotent
            session.commit()
            return result

    def in_autocommit() -> Any:
        def work_once(session: Session) -> Any:
            nonlocal called, may_be_stored
            called, may_be_stored = True, not idempotent
            return work(session)

        return run_in_autocommit(engine.get_engine().sync_engine, work_once)

    async def attempt() -> Any:
        log_line.attempting()
        with log_line.QueryTime(), request_policy.TranslatedErrors():
            # One greenlet for everything. AsyncSession uses one per method and a task to close: a
            # quarter of a warm request's CPU.
            return await greenlet_spawn(in_autocommit if autocommit else in_transaction)

    try:
        result = await request_policy.with_retry(attempt, lambda: idempotent or not called)
    except DatabaseError as error:
        if may_be_stored:
            error.mark_outcome_unknown()
        raise
    if isinstance(result, CoroutineType):
        result.close()
        raise TypeError("work is an async function: run() needs a regular one")
    return result


@asynccontextmanager
async def session(
    *, isolation: Isolation = "READ COMMITTED", read_only: bool = False
) -> AsyncIterator[AsyncSession]:
    """Open a session with one transaction for the block; rolled back if the block raises.

    Connecting is retried if that is safe, the block is not. The session uses the invocation's only
    connection, so `run` inside the block raises at once unless DB_POOL_SIZE is above 1. Raises
    DatabaseError.
    """
    _check_can_connect()
    options, committing = _options(isolation, read_only), False
    marker: list[None] = [None]
    _open_sessions.set((*(other for other in _open_sessions.get() if other), marker))

    async def connect() -> None:
        log_line.attempting()
        with request_policy.TranslatedErrors():
            await async_session.connection(execution_options=options)

    try:
        with log_line.QueryTime(), request_policy.TranslatedErrors():
            async with AsyncSession(engine.get_engine(), expire_on_commit=False) as async_session:
                await request_policy.with_retry(connect, lambda: True)
                yield async_session
                committing = True
                await async_session.commit()
    except DatabaseError as error:
        error.mark_not_retried()
        if committing:
            error.mark_outcome_unknown()
        raise
    finally:
        marker.clear()


async def ping() -> None:
    """Make one round trip to Postgres. Raises DatabaseError."""
    await run(lambda s: s.scalar(text("SELECT 1")), autocommit=True, idempotent=True)


def _check_timeout(seconds: float) -> None:
    longest = load_settings().command_timeout
    if not 0.001 <= seconds < longest:
        raise ValueError(
            f"statement_timeout is {seconds}: must be 0.001 to below DB_COMMAND_TIMEOUT, {longest}"
        )


def _options(isolation: Isolation, read_only: bool) -> dict[str, Any]:
    if isolation not in get_args(Isolation):
        raise TypeError(f"isolation is {isolation!r}, not one of {', '.join(get_args(Isolation))}")
    return {"isolation_level": isolation, "postgresql_readonly": read_only}


def _check_can_connect() -> None:
    """Raise if the deadline has passed or this context already holds every connection."""
    cancellation.raise_if_over()
    if held := sum(map(len, _open_sessions.get())):
        settings = load_settings()
        if held >= settings.pool_size + settings.max_overflow:
            raise InvalidRequestError(
                "this invocation's connection is in use by the session() around this call: "
                "use that session, or raise DB_POOL_SIZE"
            )
