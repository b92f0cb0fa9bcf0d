"""The wire protocol: describes each statement in the round trip that runs it.

This prevents asyncpg from decoding a row with a description that a migration has made obsolete. The
alternatives are in docs/decisions/result-types.md.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import asyncpg

#: How many descriptions a connection keeps (the most recently used); SQLAlchemy keeps 150.
MAX_DESCRIPTIONS = 300
_SYNC, _FLUSH, _PARSED = b"S\0\0\0\4", b"H\0\0\0\4", b"1\0\0\0\4"
#: Separates a statement from the number that makes its text unique; not sent to the server.
_MARK = b"\x01"
_numbers = itertools.count()


class Connection(asyncpg.Connection):
    """A connection through a `Link`, which identifies a prepared statement by its unique text."""

    def __init__(self, protocol: Any, transport: Any, *options: Any) -> None:
        super().__init__(protocol, transport, *options)
        link = Link(protocol, transport)
        transport.set_protocol(link)
        transport.write, transport.writelines = link.write, link.writelines  # asyncpg calls these

    async def prepare(self, query: str, **options: Any) -> Any:
        return await super().prepare(f"{query}{_MARK.decode()}{next(_numbers)}", **options)


@dataclass(slots=True)
class _Statement:
    parse: bytes  # the messages Parse, with the types that asyncpg encodes, and Describe
    reply: bytes  # the server's response to both while the types are unchanged
    columns: bytes  # with which asyncpg decodes rows


class Link(asyncio.Protocol):
    """A layer between asyncpg's protocol and its transport.

    Without its cache, asyncpg asks once for the types of a statement's parameters and columns, and
    then sends Parse, Bind, Execute, Sync. After `ALTER … TYPE real` it would read the integer 5 as
    1084227584. This layer adds a Describe. It also adds the parameters' types to Parse, so that the
    server decodes what was encoded. If the columns' types or names have changed, Postgres' error
    for named statements (0A000) replaces the response, and SQLAlchemy prepares all of them again.

    asyncpg ends a prepare with Flush. If it then cannot encode a value, PgBouncer would wait for
    more messages, so this layer ends a prepare with Sync.
    """

    def __init__(self, inner: asyncio.Protocol, transport: asyncio.Transport) -> None:
        self._inner, self._send, self._deliver = inner, transport.write, inner.data_received
        self._statements: dict[bytes, _Statement] = {}
        self._bound: _Statement | None = None  # its Parse is sent with the Bind that follows
        self._preparing: bytes | None = None
        self._running: _Statement | None = None
        self._sync_expected = self._stale = False
        self._read = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Pass on what asyncpg sends: one or more complete messages."""
        kind, bound = data[0:1], self._bound
        self._bound = None
        if kind == b"B" and bound:
            self._running = bound
            self._send(bound.parse + data)
        elif kind == b"P":
            self._parse(bytes(data))
        elif self._preparing is not None and data == _SYNC:
            self._sync_expected = True  # this layer has sent it already
        else:
            self._send(data)

    def writelines(self, lines: list[memoryview]) -> None:
        self.write(b"".join(lines))

    def _parse(self, data: bytes) -> None:
        size = 1 + int.from_bytes(data[1:5], "big")
        name, text, _ = data[5:size].split(b"\0", 2)
        if data.endswith(_FLUSH):  # asyncpg prepares
            self._preparing, self._sync_expected = text, False
            sql = text.rsplit(_MARK, 1)[0]
            parse = _message(b"P", name + b"\0" + sql + b"\0\0\0")
            self._send(parse + data[size : -len(_FLUSH)] + _SYNC)
        elif name or len(data) > size:
            self._send(data)
        elif text in self._statements:
            self._bound = self._statements.pop(text)
            self._statements[text] = self._bound  # most recently used last
        else:
            raise asyncpg.InternalClientError("too many prepared statements are in use")

    def data_received(self, data: bytes) -> None:
        """Pass on what the server sends, which may be split anywhere."""
        if self._read:
            data, self._read = self._read + data, b""
        if self._running and data.startswith(self._running.reply):
            data = data[len(self._running.reply) :]  # nothing new for asyncpg
            self._running = None
        if self._running or self._stale:
            self._compare(data)
        elif self._preparing is None:
            self._deliver(data)
        else:
            self._remember(data, self._preparing)

    def _remember(self, data: bytes, text: bytes) -> None:
        received = {}
        for kind, begin, end in _messages(data):
            received[kind] = data[begin:end]
            if kind == b"E":
                self._deliver(data)  # then asyncpg sends Sync
                self._preparing = None
                return
            if kind == b"Z":
                row = received.get(b"T") or received.get(b"n", b"")
                if types := received.get(b"t"):
                    parse = _message(b"P", b"\0" + text.rsplit(_MARK, 1)[0] + b"\0" + types[5:])
                    self._statements[text] = _Statement(
                        parse + _message(b"D", b"S\0"), _PARSED + types + row, row
                    )
                    if len(self._statements) > MAX_DESCRIPTIONS:
                        del self._statements[next(iter(self._statements))]
                self._preparing = None
                # asyncpg expects the response to Sync only if it has sent one.
                self._deliver(data if self._sync_expected else data[:begin] + data[end:])
                return
        self._read = data

    def _compare(self, data: bytes) -> None:
        end = 0
        for kind, begin, end in _messages(data):
            if kind in b"SNA":  # settings, notices, notifications
                self._deliver(data[begin:end])
            elif kind in b"EZ":
                self._running, self._stale = None, False
                self._deliver(data[begin:])
                return
            elif self._running and kind in b"Tn":
                running, row, self._running = self._running, data[begin:end], None
                if _columns(row) == _columns(running.columns):  # only table or length differs
                    running.reply = running.reply.removesuffix(running.columns) + row
                    running.columns = row
                    self._deliver(data[end:])
                    return
                self._stale = True
                self._deliver(_STALE)
        self._read = data[end:]

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def _messages(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start and end of each complete message."""
    begin = 0
    while len(data) >= begin + 5:
        end = begin + 1 + int.from_bytes(data[begin + 1 : begin + 5], "big")
        if end > len(data):
            return
        yield data[begin : begin + 1], begin, end
        begin = end


def _columns(row: bytes) -> list[tuple[bytes, bytes]]:
    """Return the name and type of each column; none for NoData."""
    columns, position = [], 7
    while position < len(row):
        end = row.index(b"\0", position)
        columns.append((row[position:end], row[end + 7 : end + 11]))
        position = end + 19
    return columns


# Postgres' own message; asyncpg recognises it by the routine (R).
_STALE = _message(
    b"E",
    b"SERROR\0VERROR\0C0A000\0Mcached plan must not change result type\0RRevalidateCachedQuery\0\0",
)
