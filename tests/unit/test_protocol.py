"""The protocol layer between asyncpg and the socket, tested without either."""

import asyncio
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from handler.warm.database.protocol import KEPT, Link

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


def columns(*described: tuple[bytes, int], table: int = 0) -> bytes:
    fields = b"".join(
        name + b"\0" + table.to_bytes(4, "big") + b"\0\1" + kind.to_bytes(4, "big") + b"\0" * 8
        for name, kind in described
    )
    return message(b"T", len(described).to_bytes(2, "big") + fields)


INTEGER, REAL = columns((b"id", 23)), columns((b"id", 700))
ROW = message(b"D", b"\0\1\0\0\0\4\0\0\0\5")


class Driver(asyncio.Protocol):
    """Accept whole messages, as asyncpg does, and send Sync on an error while preparing."""

    def __init__(self) -> None:
        self.got: list[bytes] = []
        self.buffer = b""
        self.write: Any = None

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while len(self.buffer) >= 5:
            size = 1 + int.from_bytes(self.buffer[1:5], "big")
            if len(self.buffer) < size:
                return
            self.got.append(self.buffer[:size])
            self.buffer = self.buffer[size:]
            if self.got[-1] == ERROR and self.write:
                self.write(SYNC)


class Socket(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: Any) -> None:
        self.sent.append(bytes(data))


class Ends:
    def __init__(self) -> None:
        self.driver, self.socket = Driver(), Socket()
        self.link = Link(self.driver, self.socket)

    def send(self, *data: bytes) -> bytes:
        for one in data:
            self.link.write(memoryview(one))
        sent = b"".join(self.socket.sent)
        self.socket.sent.clear()
        return sent

    def receive(self, data: bytes, cuts: list[int] | None = None) -> list[bytes]:
        cut_points = sorted(point % (len(data) + 1) for point in cuts or [])
        for begin, end in zip([0, *cut_points], [*cut_points, len(data)], strict=True):
            self.link.data_received(data[begin:end])
        got, self.driver.got = self.driver.got, []
        return got

    def prepare(self, text: bytes = b"SELECT\x017", row: bytes = INTEGER) -> None:
        self.send(parse(text) + DESCRIBE + FLUSH)
        self.receive(PARSED + ONE_INTEGER + row + READY)


cut = given(st.lists(st.integers(0, 500), max_size=6))


@cut
def test_a_query_ends_with_sync_and_the_extra_ready_is_hidden_from_the_driver(
    cuts: list[int],
) -> None:
    ends = Ends()
    assert ends.send(parse(b"SELECT\x017") + DESCRIBE + FLUSH) == parse(b"SELECT") + DESCRIBE + SYNC
    answer = PARSED + ONE_INTEGER + INTEGER + READY
    assert ends.receive(answer, cuts) == [PARSED, ONE_INTEGER, INTEGER]


@cut
def test_an_invalid_statement_is_an_error_and_one_sync(cuts: list[int]) -> None:
    ends = Ends()
    ends.driver.write = ends.link.write
    ends.send(parse(b"SELEC\x017") + DESCRIBE + FLUSH)
    assert ends.receive(ERROR + READY, cuts) == [ERROR, READY]
    assert ends.socket.sent == []
    assert ends.send(SYNC) == SYNC  # only the query's Sync


@cut
def test_an_abandoned_query_ends_with_the_sync_already_sent(cuts: list[int]) -> None:
    ends = Ends()
    ends.send(parse(b"SELECT\x017") + DESCRIBE + FLUSH)
    assert ends.send(SYNC) == b""
    assert ends.receive(PARSED + ONE_INTEGER + INTEGER + READY, cuts)[-1] == READY


@cut
def test_a_known_statement_is_described_in_the_batch_that_runs_it(cuts: list[int]) -> None:
    ends = Ends()
    ends.prepare()
    burst = parse(b"SELECT", ONE_INTEGER[5:]) + DESCRIBE + EXECUTE
    for _ in range(2):
        assert ends.send(parse(b"SELECT\x017"), EXECUTE) == burst
        answer = PARSED + ONE_INTEGER + INTEGER + BOUND + ROW + DONE + READY
        assert ends.receive(answer, cuts) == [BOUND, ROW, DONE, READY]


@cut
def test_rows_of_another_type_raise_an_error(cuts: list[int]) -> None:
    ends = Ends()
    ends.prepare()
    ends.send(parse(b"SELECT\x017"), EXECUTE)
    answer = NOTICE + PARSED + ONE_INTEGER + REAL + BOUND + ROW + NOTICE + ROW + DONE + READY
    before, stale, after, ready = ends.receive(answer, cuts)
    assert (before, after, ready) == (NOTICE, NOTICE, READY)
    error = asyncpg.PostgresError.new(
        {field[:1].decode(): field[1:].decode() for field in stale[5:].split(b"\0") if field}
    )
    assert isinstance(error, asyncpg.InvalidCachedStatementError)
    ends.prepare(row=REAL)
    ends.send(parse(b"SELECT\x017"), EXECUTE)
    assert ROW in ends.receive(PARSED + ONE_INTEGER + REAL + BOUND + ROW + DONE + READY)


@pytest.mark.parametrize(
    ("row", "same"),
    [
        (columns((b"id", 23), table=7), True),
        (columns((b"name", 23)), False),
        (columns((b"id", 23), (b"name", 25)), False),
        (NO_DATA, False),
    ],
    ids=["another table", "another name", "one more", "none"],
)
def test_columns_are_compared_by_name_and_type(row: bytes, same: bool) -> None:
    ends = Ends()
    ends.prepare()
    for _ in range(2):
        ends.send(parse(b"SELECT\x017"), EXECUTE)
        got = ends.receive(PARSED + ONE_INTEGER + row + BOUND + ROW + DONE + READY)
        assert (ROW in got) is same


def test_a_server_error_is_passed_through() -> None:
    ends = Ends()
    ends.prepare()
    ends.send(parse(b"SELECT\x017"), EXECUTE)
    assert ends.receive(ERROR + READY) == [ERROR, READY]
    ends.send(parse(b"SELECT\x017"), EXECUTE)
    assert ends.receive(PARSED + ONE_INTEGER + INTEGER + ERROR + READY) == [ERROR, READY]


def test_two_statements_with_the_same_text_have_separate_descriptions() -> None:
    ends = Ends()
    ends.prepare(b"SELECT\x017", INTEGER)
    ends.prepare(b"SELECT\x018", REAL)
    for text, same in ((b"SELECT\x017", False), (b"SELECT\x018", True)):
        ends.send(parse(text), EXECUTE)
        answer = PARSED + ONE_INTEGER + REAL + BOUND + ROW + DONE + READY
        assert (ROW in ends.receive(answer)) is same


def test_a_partially_sent_message_is_not_processed() -> None:
    """As when the first value of an executemany cannot be encoded."""
    ends = Ends()
    ends.prepare()
    assert ends.send(parse(b"SELECT\x017")) == b""
    query = message(b"Q", b"ROLLBACK\0")
    assert ends.send(query) == query
    assert ends.receive(DONE + READY) == [DONE, READY]


def test_other_messages_are_passed_through_unchanged() -> None:
    ends = Ends()
    named = parse(b"SELECT", name=b"mine")
    for data in (named, message(b"Q", b"SELECT\0"), message(b"d", b"copied"), EXECUTE):
        assert ends.send(data) == data
    rollback = parse(b"ROLLBACK") + EXECUTE  # how asyncpg ends a failed executemany
    assert ends.send(rollback) == rollback
    assert ends.receive(INTEGER + ROW + READY) == [INTEGER, ROW, READY]


def test_the_oldest_description_is_evicted_and_its_statement_does_not_run() -> None:
    ends = Ends()
    for number in range(KEPT + 1):
        ends.prepare(b"SELECT\x01%d" % number)
        if number:
            ends.send(parse(b"SELECT\x011"), EXECUTE)  # used constantly
            ends.receive(PARSED + ONE_INTEGER + INTEGER + BOUND + DONE + READY)
    with pytest.raises(asyncpg.InternalClientError, match="too many prepared statements"):
        ends.send(parse(b"SELECT\x010"))
    assert ends.send(parse(b"SELECT\x011"), EXECUTE)


def test_event_loop_callbacks_reach_the_driver() -> None:
    ends = Ends()
    output = []
    for name in ("connection_lost", "pause_writing", "resume_writing", "eof_received"):
        setattr(ends.driver, name, lambda *more, name=name: output.append(name))
    ends.link.connection_lost(None)
    ends.link.pause_writing()
    ends.link.resume_writing()
    ends.link.eof_received()
    assert output == ["connection_lost", "pause_writing", "resume_writing", "eof_received"]
