"""A TCP relay that sees every byte between a client and a server, and can get in their way.

Owns counting round trips, and delaying, stalling, swallowing, cutting and refusing traffic. Knows
no protocol: through TLS it counts as well as without. It runs on a thread of its own, so that the
code under test may block or run a loop as it likes.
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

Direction = Literal["questions", "answers"]  # of clients, of servers


class Relay:
    """`with Relay(host, port) as relay:`, then connect to `relay.host`, `relay.port` instead.

    `delay`: seconds that each round trip takes longer, half of it in each direction. `others`: more
    addresses; each connection goes to the next one, as behind a load balancer. `at`: where it
    listens, if not on any free port.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *others: tuple[str, int],
        delay: float = 0.0,
        at: tuple[str, int] = ("127.0.0.1", 0),
    ) -> None:
        self.host, self.port = at
        self._targets = itertools.cycle([(host, port), *others])
        self.delay = delay
        #: How often a client spoke and the server answered, since the start or `reset`.
        self.round_trips = 0
        #: Connections accepted since the start or `reset`.
        self.connections = 0
        self._refusing = False
        self._passing: dict[Direction, asyncio.Event] = {
            "questions": asyncio.Event(),
            "answers": asyncio.Event(),
        }
        self._pass_on()
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._writers: set[asyncio.StreamWriter] = set()
        # epoll would round a delay of half a millisecond up to a whole one.
        self._loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
        self._thread = threading.Thread(target=self._loop.run_forever, name="relay", daemon=True)

    def __enter__(self) -> "Relay":
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

    def reset(self) -> None:
        """Count from nought again."""
        self.round_trips = self.connections = 0

    def stall(self) -> None:
        """Hold everything back, both ways, until `resume`. Connections stay open."""
        self._do(self._flowing.clear)

    def resume(self) -> None:
        self._do(self._flowing.set)

    def cut(self) -> None:
        """Reset every connection there is; new ones are accepted, and nothing of theirs is
        swallowed."""
        self._do(self._reset_all)

    def lead_to(self, host: str, port: int) -> None:
        """Where connections go from now on."""
        self._targets = itertools.cycle([(host, port)])

    def swallow(self, *directions: Direction) -> None:
        """Pass on nothing in these directions until `cut`, nor that a connection has ended."""
        for direction in directions:
            self._do(self._passing[direction].clear)

    def refuse(self, refusing: bool = True) -> None:
        """Reset new connections as they come, or no more."""
        self._refusing = refusing

    def _pass_on(self) -> None:
        for passing in self._passing.values():
            passing.set()

    def _reset_all(self) -> None:
        self._pass_on()
        for writer in self._writers:
            _reset(writer)

    def _do(self, action: Callable[[], object]) -> None:
        async def act() -> None:
            action()

        asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    async def _close(self) -> None:
        self._server.close()
        self._pass_on()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(
        self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter
    ) -> None:
        self.connections += 1
        with contextlib.suppress(OSError, asyncio.CancelledError):
            async with self._owning(to_client):
                if self._refusing:
                    _reset(to_client)
                    return
                from_server, to_server = await asyncio.open_connection(*next(self._targets))
                async with self._owning(to_server):
                    await self._relay(from_client, to_server, from_server, to_client)

    @contextlib.asynccontextmanager
    async def _owning(self, writer: asyncio.StreamWriter) -> AsyncIterator[None]:
        """Whatever happens in the block, the connection is closed after it."""
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

    async def _relay(
        self,
        from_client: asyncio.StreamReader,
        to_server: asyncio.StreamWriter,
        from_server: asyncio.StreamReader,
        to_client: asyncio.StreamWriter,
    ) -> None:
        client_spoke = False

        def client_speaks() -> None:
            nonlocal client_spoke
            client_spoke = True

        def server_speaks() -> None:
            nonlocal client_spoke
            self.round_trips += client_spoke
            client_spoke = False

        ways: list[tuple[Direction, asyncio.StreamReader, asyncio.StreamWriter, Callable[[], None]]]
        ways = [
            ("questions", from_client, to_server, client_speaks),
            ("answers", from_server, to_client, server_speaks),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for direction, reader, writer, seen in ways:
                    under_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
                    group.create_task(self._read(reader, under_way, seen, direction))
                    group.create_task(self._write(writer, under_way))
        except ExceptionGroup as broken:
            raise broken.exceptions[0] from None  # one end is gone: so is the other

    async def _read(
        self,
        reader: asyncio.StreamReader,
        under_way: asyncio.Queue[tuple[float, bytes]],
        seen: Callable[[], None],
        direction: Direction,
    ) -> None:
        passing = self._passing[direction]
        try:
            while data := await reader.read(65536):
                seen()
                if passing.is_set():
                    under_way.put_nowait((self._loop.time() + self.delay / 2, data))
        finally:
            await passing.wait()
        under_way.put_nowait((self._loop.time(), b""))

    async def _write(
        self, writer: asyncio.StreamWriter, under_way: asyncio.Queue[tuple[float, bytes]]
    ) -> None:
        while True:
            due, data = await under_way.get()
            await asyncio.sleep(due - self._loop.time())
            await self._flowing.wait()
            if not data:
                writer.write_eof()
                return
            writer.write(data)
            await writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with an RST, as a middlebox does, instead of a FIN."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
