"""Liveness: detects unusable pooled connections without a round trip.

Why not `pool_pre_ping`: docs/decisions/liveness.md.
"""

from __future__ import annotations

import select
import socket
import time
from functools import partial
from typing import Any

import asyncpg
from sqlalchemy import Engine, event
from sqlalchemy.exc import DisconnectionError

_RESTORED = ("TimeZone", "DateStyle", "IntervalStyle", "standard_conforming_strings")


def watch(engine: Engine, max_idle: float) -> None:
    """Check each connection of `engine` at checkout.

    A connection that was idle for more than `max_idle` seconds is replaced, because a firewall or
    PgBouncer may have dropped it.
    """
    event.listen(engine, "checkin", _on_checkin)
    event.listen(engine, "checkout", partial(_check_alive, max_idle))


def _settings(raw: asyncpg.Connection[Any]) -> list[str | None]:
    """Return the settings that PgBouncer tracks per client and restores on server connections."""
    reported = raw.get_settings()
    return [getattr(reported, name, None) for name in _RESTORED]


def _on_checkin(connection: Any, record: Any) -> None:
    record.info["idle_since"] = time.time()
    if connection is None or connection.driver_connection.is_closed():
        return
    raw = connection.driver_connection
    # The next request must not get an open transaction or the effect of a SET.
    if raw.is_in_transaction() or _settings(raw) != record.info["settings"]:
        raw.terminate()


def _check_alive(max_idle: float, connection: Any, record: Any, _: Any) -> None:
    raw = connection.driver_connection
    if "idle_since" not in record.info:  # a new connection
        record.info["settings"] = _settings(raw)  # listeners of `connect` may change them
        return
    # By the wall clock: the monotonic clock may stand still while a sandbox is frozen.
    idle = time.time() - record.info["idle_since"]
    if idle > max_idle or was_closed(raw):
        raw.terminate()  # a clean close would wait for the server
        raise DisconnectionError("closed, or idle for too long")  # the pool opens a new one


def was_closed(raw: asyncpg.Connection[Any]) -> bool:
    """Tell whether the peer closed the connection: its socket is then readable. Takes 1.4 µs."""
    sock = socket_of(raw)
    if sock is None or raw.is_closed():
        return True
    poll = select.poll()
    poll.register(sock, select.POLLIN | getattr(select, "POLLRDHUP", 0))
    return bool(poll.poll(0))


def set_tcp_timeouts(raw: asyncpg.Connection[Any], seconds: float) -> None:
    """Let the kernel close the connection if data is not acknowledged for `seconds`; its default
    is 15 minutes."""
    sock = socket_of(raw)
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(seconds * 1000))


def socket_of(raw: asyncpg.Connection[Any]) -> socket.socket | None:
    """Return the socket, or None if the TLS transport has already released it."""
    sock: socket.socket | None = raw._transport.get_extra_info("socket")  # type: ignore[attr-defined]  # no public API
    return sock


def drop_after_driver_error(context: Any) -> None:
    """Discard a connection after an error that Postgres did not report.

    After a timeout, or a row that asyncpg cannot decode, the state of the connection is unknown.
    Other connections of the pool are not affected.
    """
    error = context.original_exception
    if isinstance(error.__cause__, asyncpg.InvalidCachedStatementError):
        # SQLAlchemy caches the old type's result converters with the compiled statements.
        context.engine.clear_compiled_cache()
    if not isinstance(error.__cause__ or error, asyncpg.PostgresError):
        context.is_disconnect = True
        context.invalidate_pool_on_disconnect = False
