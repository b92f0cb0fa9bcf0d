"""Raw connections: the handshake with credentials, TLS and SCRAM, and the close."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import asyncpg

from handler.warm import log_line, request_policy
from handler.warm.database import credentials, protocol, spans
from handler.warm.database.liveness import set_tcp_timeouts, was_closed
from handler.warm.database.network import ConnectingLoop
from handler.warm.database.tls import tls_context
from handler.warm.errors import CredentialsError
from handler.warm.settings import Settings

#: How long a clean close may take, in seconds: it must fit into the margin before the deadline and
#: into Lambda's shutdown. SQLAlchemy's own timeout is 2 s.
CLOSE_TIMEOUT = 0.2
#: How long a cancel request may take, in seconds, as DB_CONNECT_TIMEOUT by default.
CANCEL_LIMIT = 3
#: Background tasks that close connections or send cancel requests.
_closing: set[asyncio.Task[Any]] = set()


def _track(task: asyncio.Task[Any]) -> None:
    _closing.add(task)
    task.add_done_callback(_forget)


def _forget(task: asyncio.Task[Any]) -> None:
    _closing.discard(task)
    if not task.cancelled():
        task.exception()  # read, so that asyncio does not log an expected timeout


class _Connection(protocol.Connection):
    """A connection that reports a failed COMMIT and lets its cancel requests finish."""

    _closing_task: asyncio.Task[Any] | None = None
    _cancellations: set[asyncio.Task[None]]  # asyncpg's cancel requests
    _loop: asyncio.AbstractEventLoop  # asyncpg's

    async def execute(self, query: str, *args: Any, timeout: float | None = None) -> str:  # noqa: ASYNC109  # asyncpg's
        """Raise InFailedSQLTransactionError if Postgres responds to COMMIT with ROLLBACK."""
        command_tag = await super().execute(query, *args, timeout=timeout)
        if command_tag == "ROLLBACK" and query.startswith("COMMIT"):
            raise asyncpg.InFailedSQLTransactionError(
                "COMMIT found the transaction aborted and rolled it back"
            )
        return command_tag

    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncpg's
        if not self._cancellations and was_closed(self):
            self.terminate()  # the server has disconnected, so it would read nothing
            return
        self._closing_task = asyncio.current_task()
        # asyncpg would withdraw a cancel request that is not sent in time, and PgBouncer 1.18 exits
        # if the client of a cancel request disconnects before it is forwarded (pgbouncer#801).
        for cancellation in self._cancellations:
            _track(cancellation)
            self._loop.call_later(CANCEL_LIMIT, cancellation.cancel)
        self._cancellations = set()
        try:
            await super().close(timeout=min(timeout or CLOSE_TIMEOUT, CLOSE_TIMEOUT))
        except TimeoutError:
            pass  # asyncpg has disconnected; the caller's work has not failed
        finally:
            self._closing_task = None

    def terminate(self) -> None:
        """Disconnect at once, or after a close or a cancel request that is in progress.

        SQLAlchemy terminates a connection if the task that closes it is cancelled, and anyio
        cancels a task again in each iteration of the loop. asyncpg would then withdraw the cancel
        request, and the query would continue to run.
        """
        task = self._closing_task
        if task is None and self._cancellations and self._loop.is_running():
            task = self._loop.create_task(self.close())
        if task is None:
            super().terminate()
        else:
            _track(task)


async def wait_for_closing(until: float) -> None:
    """Wait for connections that are being closed, until the loop's clock shows `until`."""
    loop = asyncio.get_running_loop()
    if tasks := {task for task in _closing if task.get_loop() is loop}:
        await asyncio.wait(tasks, timeout=max(0, until - loop.time()))


#: Options of every connection.
OPTIONS: dict[str, Any] = {
    "connection_class": _Connection,
    # Unnamed statements, as transaction pooling needs. SQLAlchemy caches them, so a warm statement
    # takes one round trip: docs/decisions/unnamed-statements.md.
    "statement_cache_size": 0,
    # asyncpg sends 'utf-8' with the quotation marks, which RDS Proxy rejects (asyncpg#952).
    "server_settings": {"application_name": "warm-engine", "client_encoding": "UTF8"},
}


def connector(settings: Settings) -> Callable[[], Awaitable[asyncpg.Connection[Any]]]:
    """Return a function that opens one raw connection with the current credentials."""
    source = credentials.from_settings(settings)
    tls = tls_context(settings)

    async def handshake(login: credentials.Login) -> asyncpg.Connection[Any]:
        loop = ConnectingLoop(
            scram=settings.auth != "iam"
        )  # a token is sent in clear text within TLS
        try:
            raw: asyncpg.Connection[Any] = await asyncpg.connect(
                host=settings.host,
                port=settings.port,
                database=settings.name,
                user=login[0],
                password=login[1],
                loop=cast(Any, loop),
                ssl=tls,
                timeout=settings.connect_timeout,
                command_timeout=settings.command_timeout,
                **OPTIONS,
            )
        except BaseException as error:
            loop.abort()
            if loop.withheld_password and isinstance(error, asyncpg.ConnectionDoesNotExistError):
                raise CredentialsError("the server asked for the password without SCRAM") from None
            raise
        return raw

    async def connect() -> asyncpg.Connection[Any]:
        with log_line.connecting(), spans.connecting(settings):
            login = await source(None)
            try:
                raw = await handshake(login)
            except asyncpg.PostgresError as error:
                if not request_policy.is_refused_login(error):
                    raise
                new_login = await source(login)  # the password may have been rotated
                if new_login == login:
                    raise
                raw = await handshake(new_login)
        set_tcp_timeouts(raw, settings.connect_timeout)
        return raw

    return connect
