"""The proxy counts round trips and injects faults."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from infra.local.tcp_proxy import Direction, TcpProxy


@pytest.fixture
def proxy() -> Iterator[TcpProxy]:
    """Start a proxy in front of a server that returns its input in capitals."""
    listener = socket.create_server(("127.0.0.1", 0))

    def response(connection: socket.socket) -> None:
        with connection:
            try:
                while data := connection.recv(1024):
                    connection.sendall(data.upper())
            except ConnectionError:
                pass

    def accept() -> None:
        try:
            while True:
                threading.Thread(target=response, args=[listener.accept()[0]], daemon=True).start()
        except OSError:
            pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    with TcpProxy(*listener.getsockname()) as proxy:
        yield proxy
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[socket.socket]:
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as client:
        yield client


def exchange(client: socket.socket, text: bytes = b"hello") -> bytes:
    client.sendall(text)
    return client.recv(1024)


def test_a_query_and_its_response_are_one_round_trip(
    proxy: TcpProxy, client: socket.socket
) -> None:
    assert [exchange(client) for _ in range(3)] == [b"HELLO"] * 3
    assert (proxy.round_trips, proxy.connections) == (3, 1)
    proxy.reset_counters()
    assert (proxy.round_trips, proxy.connections) == (0, 0)


def test_a_pipelined_batch_is_one_round_trip(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.stall()
    for _ in range(5):
        client.sendall(b"x")
    proxy.resume()
    response = b""
    while len(response) < 5:
        response += client.recv(1024)
    assert proxy.round_trips <= 2  # the server may read the batch in two parts


def test_a_delay_applies_once_per_round_trip(proxy: TcpProxy, client: socket.socket) -> None:
    exchange(client)
    proxy.delay = 0.1
    started = time.monotonic()
    exchange(client)
    assert 0.1 <= time.monotonic() - started < 2


def test_a_stall_holds_back_all_data_until_it_ends(proxy: TcpProxy, client: socket.socket) -> None:
    proxy.stall()
    client.sendall(b"hello")
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    proxy.resume()
    client.settimeout(5)
    assert client.recv(1024) == b"HELLO"


def test_a_cut_resets_open_connections_and_accepts_new_ones(
    proxy: TcpProxy, client: socket.socket
) -> None:
    exchange(client)
    proxy.reset_connections()
    with pytest.raises(ConnectionResetError):
        client.recv(1024)
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as new_client:
        assert exchange(new_client) == b"HELLO"


def test_a_refusal_resets_new_connections(proxy: TcpProxy) -> None:
    proxy.refuse()
    with (
        pytest.raises(ConnectionResetError),  # while connecting, or in the first read
        socket.create_connection((proxy.host, proxy.port), timeout=5) as rejected_client,
    ):
        rejected_client.recv(1024)
    proxy.refuse(False)
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as new_client:
        assert exchange(new_client) == b"HELLO"


def test_end_of_stream_is_forwarded(proxy: TcpProxy, client: socket.socket) -> None:
    exchange(client)
    client.shutdown(socket.SHUT_WR)
    assert client.recv(1024) == b""


@pytest.mark.parametrize("direction", ["requests", "responses"])
def test_dropped_data_never_arrives_and_nothing_closes_until_a_cut(
    proxy: TcpProxy, client: socket.socket, direction: Direction
) -> None:
    exchange(client)
    proxy.drop(direction)
    client.sendall(b"hello")
    client.shutdown(socket.SHUT_WR)
    client.settimeout(0.2)
    with pytest.raises(TimeoutError):
        client.recv(1024)
    proxy.reset_connections()
    with pytest.raises(ConnectionResetError):
        client.recv(1024)
    with socket.create_connection((proxy.host, proxy.port), timeout=5) as new_client:
        assert exchange(new_client) == b"HELLO"
