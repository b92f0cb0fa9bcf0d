"""One raw connection to the database: how it is made, and how to tell that it is no more.

Owns the handshake (credential, TLS, SCRAM), the statements' names and the socket. Leaves how many
there are to `engine`.
"""

from __future__ import annotations

import select
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import asyncpg

from handler import credentials, failures, logs
from handler.settings import Settings, SettingsError, SslMode

#: Longer than this, in seconds, no goodbye is waited for: it must fit into what is kept of an
#: invocation's time, and into Lambda's shutdown. SQLAlchemy would wait for two.
GOODBYE = 0.2


class _Connection(asyncpg.Connection):
    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ASYNC109  # asyncpg's
        await super().close(timeout=min(timeout or GOODBYE, GOODBYE))


def connector(settings: Settings) -> Callable[[], Awaitable[asyncpg.Connection[Any]]]:
    """A creator factory: the whole handshake for one raw connection, as often as it is called."""
    source = credentials.from_settings(settings)
    tls = _tls(settings)

    async def handshake(login: credentials.Login) -> asyncpg.Connection[Any]:
        return await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            database=settings.name,
            user=login[0],
            password=login[1],
            connection_class=_Connection,
            ssl=tls,
            timeout=settings.connect_timeout,
            command_timeout=settings.command_timeout,
            # A statement that asyncpg names lives on one server connection, and in transaction
            # pooling the next request may be on another. With its cache off statements have no
            # name and are sent in one burst; SQLAlchemy keeps what they return (its own cache of
            # 100), so a warm statement is one round trip.
            statement_cache_size=0,
            # RDS Proxy refuses the driver's 'utf-8' with its quotation marks (asyncpg#952).
            server_settings={"application_name": "warm-engine", "client_encoding": "UTF8"},
        )

    async def connect() -> asyncpg.Connection[Any]:
        with logs.timing("connect_ms"):
            login = await source(None)
            try:
                raw = await handshake(login)
            except asyncpg.PostgresError as error:
                if not failures.is_refused_login(error):
                    raise
                another = await source(login)  # it was rotated meanwhile
                if another == login:
                    raise
                raw = await handshake(another)
        if sock := socket_of(raw):
            _notice_silence(sock, settings.connect_timeout)
        return raw

    return connect


def _notice_silence(sock: socket.socket, seconds: float) -> None:
    """Have the kernel end a connection that nothing acknowledges for `seconds`; its own patience is
    a quarter of an hour."""
    if sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def _tls(settings: Settings) -> ssl.SSLContext | SslMode | Literal[False]:
    """`DB_SSLMODE` in libpq's sense. Made once: a system's CA bundle takes 34 ms, a CA file 0.5."""
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


def was_closed(raw: asyncpg.Connection[Any]) -> bool:
    """Whether the other side closed it meanwhile: what it said waits on the socket. 1.4 µs."""
    sock = socket_of(raw)
    if sock is None or raw.is_closed():
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN | getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def socket_of(raw: asyncpg.Connection[Any]) -> socket.socket | None:
    """The one place that knows asyncpg's private parts. None: TLS has just lost it."""
    sock: socket.socket | None = raw._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # no public way
    return sock
