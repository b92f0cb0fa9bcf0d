"""The protocol layer describes and runs each statement in one batch, and detects changed columns.

It is tested without asyncpg and without a socket.
"""

import asyncio
from typing import Any, Self

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.warm.database.protocol import MAX_DESCRIPTIONS, Link

SYNC, FLUSH = b"S\0\0\0\4", b"H\0\0\0\4"
DESCRIBE = b"D\0\0\0\6S\0"
READY, PARSED, BOUND, DONE = b"Z\0\0\0\5I", b"1\0\0\0\4", b"2\0\0\0\4", b"C\0\0\0\rSELECT 1\0"
EXECUTE = b"B\0\0\0\4" + b"E\0\0\0\4" + SYNC
ERROR = b"E\0\0\0\5\0"
NOTICE = b"N\0\0\0\5\0"
ONE_INTEGER = b"t\0\0\0\n\0\1\0\0\0\x17"
NO_DATA = b"n\0\0\0\4"


def message(kind: bytes, body: bytes) -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


def parse(text: bytes, types: bytes = b"\0\0", name: bytes = b"") -> bytes:
    return message(b"P", name + b"\0" + text + b"\0" + types)


def columns(*fields: tuple[bytes, int], table: int = 0) -> bytes:
    content = b"".join(
        name + b"\0" + table.to_bytes(4, "big") + b"\0\1" + kind.to_bytes(4, "big") + b"\0" * 8
        for name, kind in fields
    )
    return message(b"T", len(fields).to_bytes(2, "big") + content)


INTEGER, REAL = columns((b"id", 23)), columns((b"id", 700))
ROW = message(b"D", b"\0\1\0\0\0\4\0\0\0\5")


class Driver(asyncio.Protocol):
    """Accept whole messages, as asyncpg does, and send Sync on an error while preparing."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.buffer = b""
        self.write: Any = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 5:
            size = 1 + int.from_bytes(self.buffer[1:5], "big")
            if len(self.buffer) < size:
                return
            self.received.append(self.buffer[:size])
            self.buffer = self.buffer[size:]
            if self.received[-1] == ERROR and self.write:
                self.write(SYNC)


class Socket(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))


class FakeConnection:
    """The layer under test between a fake driver and a fake socket."""

    def __init__(self) -> None:
        self.driver, self.socket = Driver(), Socket()
        self.link = Link(self.driver, self.socket)

    def send(self, *data: bytes) -> bytes:
        """Write as the driver; return what reaches the socket."""
        for chunk in data:
            self.link.write(memoryview(chunk))
        sent = b"".join(self.socket.sent)
        self.socket.sent.clear()
        return sent

    def receive(self, data: bytes, cuts: list[int] | None = None) -> list[bytes]:
        """Receive `data` in pieces, split at `cuts`; return the messages that reach the driver."""
        cut_points = sorted(point % (len(data) + 1) for point in cuts or [])
        for begin, end in zip([0, *cut_points], [*cut_points, len(data)], strict=True):
            self.link.data_received(data[begin:end])
        messages, self.driver.received = self.driver.received, []
        return messages

    def prepare(self, text: bytes = b"SELECT\x017", row: bytes = INTEGER) -> Self:
        self.send(parse(text) + DESCRIBE + FLUSH)
        self.receive(PARSED + ONE_INTEGER + row + READY)
        return self


split_at_random = given(st.lists(st.integers(0, 500), max_size=6))


@split_at_random
def test_a_query_ends_with_sync_and_the_extra_ready_is_hidden_from_the_driver(
    cuts: list[int],
) -> None:
    connection = FakeConnection()
    assert (
        connection.send(parse(b"SELECT\x017") + DESCRIBE + FLUSH)
        == parse(b"SELECT") + DESCRIBE + SYNC
    )
    response = PARSED + ONE_INTEGER + INTEGER + READY
    assert connection.receive(response, cuts) == [PARSED, ONE_INTEGER, INTEGER]


@split_at_random
def test_an_invalid_statement_is_one_error_and_one_sync(cuts: list[int]) -> None:
    connection = FakeConnection()
    connection.driver.write = connection.link.write
    connection.send(parse(b"SELEC\x017") + DESCRIBE + FLUSH)
    assert connection.receive(ERROR + READY, cuts) == [ERROR, READY]
    assert connection.socket.sent == []
    assert connection.send(SYNC) == SYNC  # only the query's Sync


@split_at_random
def test_an_abandoned_query_ends_with_the_sync_already_sent(cuts: list[int]) -> None:
    connection = FakeConnection()
    connection.send(parse(b"SELECT\x017") + DESCRIBE + FLUSH)
    assert connection.send(SYNC) == b""
    assert connection.receive(PARSED + ONE_INTEGER + INTEGER + READY, cuts)[-1] == READY


@split_at_random
def test_a_known_statement_is_described_in_the_batch_that_runs_it(cuts: list[int]) -> None:
    connection = FakeConnection().prepare()
    burst = parse(b"SELECT", ONE_INTEGER[5:]) + DESCRIBE + EXECUTE
    for _ in range(2):
        assert connection.send(parse(b"SELECT\x017"), EXECUTE) == burst
        response = PARSED + ONE_INTEGER + INTEGER + BOUND + ROW + DONE + READY
        assert connection.receive(response, cuts) == [BOUND, ROW, DONE, READY]


@split_at_random
def test_rows_of_another_type_raise_an_error(cuts: list[int]) -> None:
    connection = FakeConnection().prepare()
    connection.send(parse(b"SELECT\x017"), EXECUTE)
    response = NOTICE + PARSED + ONE_INTEGER + REAL + BOUND + ROW + NOTICE + ROW + DONE + READY
    first_notice, error_message, second_notice, ready = connection.receive(response, cuts)
    assert (first_notice, second_notice, ready) == (NOTICE, NOTICE, READY)
    error = asyncpg.PostgresError.new(
        {
            field[:1].decode(): field[1:].decode()
            for field in error_message[5:].split(b"\0")
            if field
        }
    )
    assert isinstance(error, asyncpg.InvalidCachedStatementError)
    connection.prepare(row=REAL)
    connection.send(parse(b"SELECT\x017"), EXECUTE)
    assert ROW in connection.receive(PARSED + ONE_INTEGER + REAL + BOUND + ROW + DONE + READY)


@pytest.mark.parametrize(
    ("row", "is_same"),
    [
        (columns((b"id", 23), table=7), True),
        (columns((b"name", 23)), False),
        (columns((b"id", 23), (b"name", 25)), False),
        (NO_DATA, False),
    ],
    ids=["another table", "another name", "one more", "none"],
)
def test_columns_are_compared_by_name_and_type(row: bytes, is_same: bool) -> None:
    connection = FakeConnection().prepare()
    for _ in range(2):
        connection.send(parse(b"SELECT\x017"), EXECUTE)
        messages = connection.receive(PARSED + ONE_INTEGER + row + BOUND + ROW + DONE + READY)
        assert (ROW in messages) is is_same


def test_a_server_error_is_passed_through() -> None:
    connection = FakeConnection().prepare()
    connection.send(parse(b"SELECT\x017"), EXECUTE)
    assert connection.receive(ERROR + READY) == [ERROR, READY]
    connection.send(parse(b"SELECT\x017"), EXECUTE)
    assert connection.receive(PARSED + ONE_INTEGER + INTEGER + ERROR + READY) == [ERROR, READY]


def test_two_statements_with_the_same_text_have_separate_descriptions() -> None:
    connection = FakeConnection()
    connection.prepare(b"SELECT\x017", INTEGER)
    connection.prepare(b"SELECT\x018", REAL)
    for text, is_same in ((b"SELECT\x017", False), (b"SELECT\x018", True)):
        connection.send(parse(text), EXECUTE)
        response = PARSED + ONE_INTEGER + REAL + BOUND + ROW + DONE + READY
        assert (ROW in connection.receive(response)) is is_same


def test_a_partially_sent_message_is_not_processed() -> None:
    """This happens when the first value of an executemany cannot be encoded."""
    connection = FakeConnection().prepare()
    assert connection.send(parse(b"SELECT\x017")) == b""
    query = message(b"Q", b"ROLLBACK\0")
    assert connection.send(query) == query
    assert connection.receive(DONE + READY) == [DONE, READY]


def test_other_messages_are_passed_through_unchanged() -> None:
    connection = FakeConnection()
    named_statement = parse(b"SELECT", name=b"mine")
    for data in (named_statement, message(b"Q", b"SELECT\0"), message(b"d", b"copied"), EXECUTE):
        assert connection.send(data) == data
    rollback = parse(b"ROLLBACK") + EXECUTE  # how asyncpg ends a failed executemany
    assert connection.send(rollback) == rollback
    assert connection.receive(INTEGER + ROW + READY) == [INTEGER, ROW, READY]


def test_the_oldest_description_is_evicted_and_its_statement_does_not_run() -> None:
    connection = FakeConnection()
    for number in range(MAX_DESCRIPTIONS + 1):
        connection.prepare(b"SELECT\x01%d" % number)
        if number:
            connection.send(parse(b"SELECT\x011"), EXECUTE)  # so this one is never the oldest
            connection.receive(PARSED + ONE_INTEGER + INTEGER + BOUND + DONE + READY)
    with pytest.raises(asyncpg.InternalClientError, match="too many prepared statements"):
        connection.send(parse(b"SELECT\x010"))
    assert connection.send(parse(b"SELECT\x011"), EXECUTE)


def test_event_loop_callbacks_reach_the_driver() -> None:
    connection = FakeConnection()
    calls = []
    for name in ("connection_lost", "pause_writing", "resume_writing", "eof_received"):
        setattr(connection.driver, name, lambda *arguments, name=name: calls.append(name))
    connection.link.connection_lost(None)
    connection.link.pause_writing()
    connection.link.resume_writing()
    connection.link.eof_received()
    assert calls == ["connection_lost", "pause_writing", "resume_writing", "eof_received"]
