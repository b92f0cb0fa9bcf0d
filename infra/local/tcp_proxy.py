"""A TCP proxy that counts round trips and can delay, stall, drop, reset and refuse traffic.

It works with any protocol, and also with TLS. It runs on its own thread, so that the code under
test may block or use any event loop.
"""

import asyncio
import contextlib
import itertools
import selectors
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable
from typing import Literal

Direction = Literal["requests", "responses"]  # to the server, to the client


class TcpProxy:
    """`with TcpProxy(host, port) as proxy:`, then connect to `proxy.host`, `proxy.port`.

    `delay`: seconds added to each round trip, half in each direction. `more_targets`: connections
    use all targets in turn. `listen_on`: by default a free port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *more_targets: tuple[str, int],
        delay: float = 0.0,
        listen_on: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.host, self.port = listen_on
        self._targets = itertools.cycle([(host, port), *more_targets])
        self.delay = delay
        #: How often a client sent data and the server responded, since `reset_counters`.
        self.round_trips = 0
        #: Connections accepted since `reset_counters`.
        self.connections = 0
        self._refusing = False
        self._forwarding: dict[Direction, asyncio.Event] = {
            "requests": asyncio.Event(),
            "responses": asyncio.Event(),
        }
        self._stop_dropping()
        self._unstalled = asyncio.Event()
        self._unstalled.set()
        self._writers: set[asyncio.StreamWriter] = set()
        # epoll would round a delay of 0.5 ms up to 1 ms.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="tcp-proxy", daemon=True
        )

    def __enter__(self) -> "TcpProxy":
        listener = socket.create_server((self.host, self.port))
        self.port = listener.getsockname()[1]
        self._thread.start()
        self._server = asyncio.run_coroutine_threadsafe(
            asyncio.start_server(self._accept, sock=listener), self._loop
        ).result()
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def reset_counters(self) -> None:
        """Set the counters to zero."""
        self.round_trips = self.connections = 0

    def stall(self) -> None:
        """Hold back all data until `resume`. Connections stay open."""
        self._run_in_loop(self._unstalled.clear)

    def resume(self) -> None:
        self._run_in_loop(self._unstalled.set)

    def reset_connections(self) -> None:
        """Reset all connections and stop dropping data."""
        self._run_in_loop(self._reset_open_connections)

    def redirect_to(self, host: str, port: int) -> None:
        """Set the target of new connections."""
        self._targets = itertools.cycle([(host, port)])

    def drop(self, *directions: Direction) -> None:
        """Drop data and FINs in these directions until `reset_connections`."""
        for direction in directions:
            self._run_in_loop(self._forwarding[direction].clear)

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections, or accept them again."""
        self._refusing = refusing

    def _stop_dropping(self) -> None:
        for forwarding in self._forwarding.values():
            forwarding.set()

    def _reset_open_connections(self) -> None:
        self._stop_dropping()
        for writer in self._writers:
            _reset(writer)

    def _run_in_loop(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    async def _close(self) -> None:
        self._server.close()
        self._stop_dropping()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            async with self._closing(to_client):
                if self._refusing:
                    _reset(to_client)
                    return
                from_server, to_server = await asyncio.open_connection(*next(self._targets))
                async with self._closing(to_server):
                    await self._forward(from_client, to_server, from_server, to_client)

    @contextlib.asynccontextmanager
    async def _closing(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Close the connection at the end of the block."""
        self._writers.add(writer)
        try:
            yield
        except BaseException:
            writer.transport.abort()
            raise
        finally:
            self._writers.discard(writer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def _forward(
        self,
        from_client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        streams: list[tuple[Direction, asyncio.StreamReader, asyncio.StreamWriter]] = [
            ("requests", from_client, to_server),
            ("responses", from_server, to_client),
        ]
        awaits_response = asyncio.Event()
        try:
            async with asyncio.TaskGroup() as group:
                for direction, reader, writer in streams:
                    in_transit: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                    group.create_task(self._read(direction, reader, in_transit, awaits_response))
                    group.create_task(self._write(writer, in_transit))
        except ExceptionGroup as group_error:
            # One side has closed its connection, so the caller closes the other.
            raise group_error.exceptions[0] from None

    async def _read(
        self,
        direction: Direction,
        reader: asyncio.StreamReader,
        in_transit: asyncio.Queue[tuple[float, bytes]],
        awaits_response: asyncio.Event,
    ) -> None:
        forwarding = self._forwarding[direction]
        try:
            while data := await reader.read(65536):
                if direction == "requests":
                    awaits_response.set()
                elif awaits_response.is_set():
                    self.round_trips += 1
                    awaits_response.clear()
                if forwarding.is_set():
                    in_transit.put_nowait((self._loop.time() + self.delay / 2, data))
        finally:
            await forwarding.wait()
        in_transit.put_nowait((self._loop.time(), b""))

    async def _write(
        self, writer: asyncio.StreamWriter, in_transit: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while True:
            due, data = await in_transit.get()
            await asyncio.sleep(due - self._loop.time())
            await self._unstalled.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
