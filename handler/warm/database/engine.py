"""The process's engine: how it is created once, pre-warmed and disposed of."""

from __future__ import annotations

import asyncio
from functools import cache
from typing import Any

from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from handler.warm import log_line, request_policy, sql_log
from handler.warm.database import cancellation, dialect, liveness, spans
from handler.warm.database.connection import connector
from handler.warm.settings import Settings, load_settings


def create_engine(settings: Settings, **options: Any) -> AsyncEngine:
    """Create an engine for `settings`; `options` go to SQLAlchemy's `create_async_engine`.

    Opens no connection. The URL contains only the dialect: the creator provides host, credentials
    and TLS for each new connection.

    Raises SettingsError if the CA file cannot be used.
    """
    engine = create_async_engine(
        f"{dialect.NAME}://",
        async_creator=connector(settings),
        pool_size=settings.pool_size,
        max_overflow=settings.max_overflow,
        pool_timeout=settings.pool_timeout,
        pool_recycle=settings.pool_recycle,
        # Error messages are logged and would contain what callers sent.
        hide_parameters=True,
        **options,
    )
    # Since the last connection a migration may have changed a column's type, but SQLAlchemy caches
    # result converters with the compiled statements.
    event.listen(engine.sync_engine, "connect", lambda *_: engine.clear_compiled_cache())
    liveness.watch(engine.sync_engine, settings.max_idle)
    cancellation.track(engine.sync_engine)
    spans.watch(engine.sync_engine, settings)
    event.listen(engine.sync_engine, "handle_error", liveness.drop_after_driver_error)
    if settings.sql_token:
        sql_log.log_requested_statements(engine.sync_engine, settings.sql_token)
    return engine


@cache
def get_engine() -> AsyncEngine:
    """Return this process's engine, created on the first call. Raises SettingsError."""
    return create_engine(load_settings())


async def prewarm() -> None:
    """Fill the pool, unless `DB_PREWARM` is `off`.

    With `on` a failure is logged, and the first query connects instead; with `required` the
    failure is raised.
    """
    settings = load_settings()
    if settings.prewarm == "off":
        return

    async def open_connection() -> None:
        async with get_engine().connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            # A login at PgBouncer does not prove that Postgres responds; a statement does.
            await connection.execute(text("SELECT 1"))

    opening = (open_connection() for _ in range(settings.pool_size))
    for error in filter(None, await asyncio.gather(*opening, return_exceptions=True)):
        if settings.prewarm == "required":
            raise error
        failure = request_policy.classify(error)
        log_line.warn("pre-warm failed; the first query will connect", failure)
        return


async def dispose() -> None:
    """Close all pooled connections, which frees their server slots at once, and drop credentials.

    Call it on the loop that served the queries. The next query creates a new engine.
    """
    if get_engine.cache_info().currsize:
        await get_engine().dispose()
        get_engine.cache_clear()
