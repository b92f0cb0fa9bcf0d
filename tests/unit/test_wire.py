"""The relay counts what crosses it and gets in the way as told."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from infra.local.wire import Direction, Relay


@pytest.fixture
def relay() -> Iterator[Relay]:
    """In front of a server that says everything back in capitals."""
    listener = socket.create_server(("127.0.0.1", 0))

    def answer(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data.upper())
            except ConnectionError:
                pass

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=answer, args=[listener.accept()[0]], daemon=True).start()
        except OSError:
            pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    with Relay(*listener.getsockname()) as relay:
        yield relay
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def client(relay: Relay) -> Iterator[socket.socket]:
    with socket.create_connection((relay.host, relay.port), timeout=5) as client:
        yield client


def ask(client: socket.socket, text: bytes = b"hello") -> bytes:
    client.sendall(text)
    return client.recv(1024)


def test_each_question_answered_is_a_round_trip(relay: Relay, client: socket.socket) -> None:
    assert [ask(client) for _ in range(3)] == [b"HELLO"] * 3
    assert (relay.round_trips, relay.connections) == (3, 1)
    relay.reset()
    assert (relay.round_trips, relay.connections) == (0, 0)


def test_a_burst_is_one_round_trip(relay: Relay, client: socket.socket) -> None:
    relay.stall()
    for _ in range(5):
        client.sendall(b"x")
    relay.resume()
    answer = b""
    while len(answer) < 5:
        answer += client.recv(1024)
    assert relay.round_trips <= 2  # what the server read at once it answers at once


def test_a_delay_is_paid_once_per_round_trip(relay: Relay, client: socket.socket) -> None:
    ask(client)
    relay.delay = 0.1
    begun = time.monotonic()
    ask(client)
    assert 0.1 <= time.monotonic() - begun < 2


def test_a_stall_holds_everything_back_until_it_ends(relay: Relay, client: socket.socket) -> None:
    relay.stall()
    client.sendall(b"hello")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    relay.resume()
    client.settimeout(5)
    assert client.recv(1024) == b"HELLO"


def test_a_cut_resets_what_is_open_and_lets_new_ones_in(
    relay: Relay, client: socket.socket
) -> None:
    ask(client)
    relay.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1024)
    with socket.create_connection((relay.host, relay.port), timeout=5) as again:
        assert ask(again) == b"HELLO"


def test_a_refusal_resets_new_connections(relay: Relay) -> None:
    relay.refuse()
    with (
        pytest.raises(ConnectionResetError),  # already in connecting, or in the first read
        socket.create_connection((relay.host, relay.port), timeout=5) as refused,
    ):
        refused.recv(1024)
    relay.refuse(False)
    with socket.create_connection((relay.host, relay.port), timeout=5) as accepted:
        assert ask(accepted) == b"HELLO"


def test_an_end_is_passed_on(relay: Relay, client: socket.socket) -> None:
    ask(client)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1024) == b""


@pytest.mark.parametrize("direction", ["questions", "answers"])
def test_what_is_swallowed_never_comes_nor_does_an_end_until_a_cut(
    relay: Relay, client: socket.socket, direction: Direction
) -> None:
    ask(client)
    relay.swallow(direction)
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    relay.cut()
    with pytest.raises(ConnectionResetError):
        client.recv(1024)
    with socket.create_connection((relay.host, relay.port), timeout=5) as again:
        assert ask(again) == b"HELLO"
