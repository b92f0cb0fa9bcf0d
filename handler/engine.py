"""The one engine of a runtime.

Owns how a raw connection is made (credential, TLS, handshake), how many are kept and how a
statement travels: a warm read costs exactly one round trip. Leaves what is asked to `orders`, and
when to dispose to whoever hosts it.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any, Literal, TypeVar

import asyncpg
from sqlalchemy import ColumnElement, cast, text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.types import TypeDecorator, TypeEngine

from handler import credentials, failures
from handler.settings import Settings, SettingsError, SslMode, load

T = TypeVar("T")
log = logging.getLogger(__name__)


def create_engine(settings: Settings, **options: Any) -> AsyncEngine:
    """An engine for `settings`; `options` go to SQLAlchemy's `create_async_engine`.

    Nothing is connected yet. The URL names only the dialect and the driver: where to connect, as
    whom and how is the creator's business, for each raw connection anew.

    Raises SettingsError when the CA file cannot be used.
    """
    return create_async_engine(
        "postgresql+asyncpg://",
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


def connector(settings: Settings) -> Callable[[], Awaitable[asyncpg.Connection[Any]]]:
    """A creator factory: the whole handshake for one raw connection, as often as it is called."""
    password = credentials.from_settings(settings)
    tls = _tls(settings)

    async def connect() -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.name,
            user=settings.user,
            password=password,
            ssl=tls,
            timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            # Transaction pooling: a statement that asyncpg names lives on one server connection,
            # the next request may be on another. With its cache off asyncpg prepares unnamed
            # statements, sent in one burst with their execution; SQLAlchemy keeps the parsed
            # result (its own cache of 100), so a warm statement is one round trip and leaves no
            # name on any server.
            statement_cache_size=0,
            server_settings={"application_name": "warm-engine"},
        )

    return connect


def _tls(settings: Settings) -> ssl.SSLContext | SslMode | Literal[False]:
    """What `DB_SSLMODE` means to the driver, in libpq's sense of the word. Made once: loading a
    system's CA bundle takes 34 ms, one CA file 0.5."""
    mode = settings.effective_sslmode
    if mode == "disable":
        return False  # not "prefer": asking for TLS and being refused costs a round trip
    if mode in ("allow", "prefer"):
        return mode
    try:
        context = ssl.create_default_context(cafile=settings.sslrootcert)
    except OSError as error:  # ssl.SSLError is one
        raise SettingsError(
            f"DB_SSLROOTCERT is {str(settings.sslrootcert)!r}: {error.strerror or error}. "
            "Allowed: the path of a readable PEM file with a CA certificate"
        ) from None
    context.check_hostname = mode == "verify-full"
    if mode == "require" and settings.sslrootcert is None:
        context.verify_mode = ssl.CERT_NONE  # libpq: with a CA file `require` checks it
    return context


class Pinned(TypeDecorator[T]):
    """A column whose values always arrive as the type this code was written for.

    An unnamed statement is parsed anew on each call, but asyncpg decodes its rows by the
    description it cached at the first. After `ALTER … TYPE real` under a warm runtime order 5
    would read as order 1084227584, without an error. `CAST(column AS type)` in the query keeps the
    description true; what does not fit the type any more is an error, never a wrong value.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = TypeEngine
    cache_ok = True

    def __init__(self, impl: TypeEngine[T]) -> None:
        super().__init__()
        self.impl = impl

    def column_expression(self, column: ColumnElement[T]) -> ColumnElement[T]:
        # Without the bounds: a cast to varchar(120) would cut what a widened column has come to
        # hold, one to numeric(10, 2) would round it.
        unbounded = self.impl_instance.copy()
        for bound in {"length", "precision", "scale"} & vars(unbounded).keys():
            setattr(unbounded, bound, None)
        return cast(column, unbounded)


@cache
def engine() -> AsyncEngine:
    """This runtime's engine, made at the first call and kept. Raises SettingsError."""
    return create_engine(load())


@cache
def _sessionmaker() -> async_sessionmaker[AsyncSession]:
    # Without expire_on_commit=False, reading an attribute after a commit is a hidden query and
    # raises MissingGreenlet.
    return async_sessionmaker(engine(), expire_on_commit=False)


def session() -> AsyncSession:
    """A session on the runtime's engine: `async with session() as s:`."""
    return _sessionmaker()()


async def ping() -> None:
    """One round trip to Postgres and back. Raises whatever is in the way."""
    async with engine().connect() as connection:
        await connection.execute(text("SELECT 1"))


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

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(settings.pool_size):
                group.create_task(open_one())
    except* Exception as failed:
        if settings.prewarm == "required":
            raise failed.exceptions[0] from None
        failure = failures.classify(failed.exceptions[0])
        log.warning("pre-warm failed, the first query tries again: %s", failure.fault)


async def dispose() -> None:
    """Close every pooled connection with a goodbye, so that Postgres frees its place at once.
    Call it on the loop that served the queries. The next query opens a new pool."""
    if engine.cache_info().currsize:
        await engine().dispose()
