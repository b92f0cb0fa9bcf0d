"""Fault injectors: async context managers that break one thing and repair it on exit."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from handler.warm.database.connection import connector
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.faults.name_server import NameServer
from tests.faults.secret_store import SecretStore

BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
#: The server that a TCP proxy is placed in front of.
TO_PGBOUNCER, TO_POSTGRES = "pgbouncer", "postgres"


@dataclass
class SystemUnderTest:
    """What a fault can break.

    `environment` is that of the sandboxes. `proxies` maps each server to the TCP proxy in front of
    it, and `faulted_proxy` names the server whose proxy the scenario breaks. `undo` cleans up at
    the end of the run. The other attributes are set only when a scenario needs them.
    """

    stack: Stack
    bouncers: list[PgBouncer]
    environment: dict[str, str]
    proxies: dict[str, TcpProxy] = field(default_factory=dict)
    faulted_proxy: str = ""
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    fleet: Fleet = field(init=False)
    name_server: NameServer = field(init=False)
    secret_store: SecretStore = field(init=False)
    disk: Path = field(init=False)

    @property
    def bouncer(self) -> PgBouncer:
        return self.bouncers[0]

    @property
    def tables(self) -> str:
        """The tables that a write needs, in the order in which it locks them."""
        traffic = self.stack.service.traffic
        return traffic.table if traffic else "order_requests, orders"

    @property
    def proxy(self) -> TcpProxy:
        return self.proxies[self.faulted_proxy]

    def servers(self, clients: int) -> int:
        """Return how many of `clients` PgBouncer serves at once."""
        return min(clients, int(self.bouncer.settings.get("default_pool_size", clients)))

    async def connect_as_admin(self) -> Any:
        database = self.stack.service.database
        return await asyncpg.connect(**self.stack.postgres.admin, database=database)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """Open an administrator connection for the duration of the block."""
        connection = await self.connect_as_admin()
        try:
            yield connection
        finally:
            await connection.close()

    async def connect_as_client(self) -> Any:
        """Connect through PgBouncer as the application, bypassing the proxy."""
        return await connector(self.stack.settings(through=self.bouncer))()


#: The fault lasts as long as the context.
FaultInjector = Callable[[SystemUnderTest], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def repeatedly(act: Callable[[], Awaitable[object]], pause: float) -> AsyncIterator[None]:
    """Call `act` for as long as the block lasts: at least once, and never interrupted."""
    finished = asyncio.Event()

    async def repeat() -> None:
        while not finished.is_set():
            await act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(finished.wait(), pause)

    repetition = asyncio.create_task(repeat())
    try:
        yield
    finally:
        finished.set()
        await repetition
