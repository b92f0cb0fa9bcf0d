"""The faults: each breaks one thing for the time of a `with` block, and mends it at its end.

Owns how each is provoked on real servers, and what is there to be broken (`Place`). Leaves what
callers see of it to `measuring`.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg

from handler.connection import connector
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.faults.names import Names
from tests.faults.vault import Vault

BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
#: Before whom a relay stands.
TO_PGBOUNCER, TO_POSTGRES = "pgbouncer", "postgres"


@dataclass
class Place:
    """What there is to break. `environment`: the sandboxes'. `relays`: by whom they stand before,
    where a fault is one of that network; `at`: which of them is meant now. `undo`: what a fault
    leaves for the time after it. The others are there where a cell needs them."""

    stack: Stack
    bouncer: PgBouncer
    environment: dict[str, str]
    relays: dict[str, Relay] = field(default_factory=dict)
    at: str = ""
    undo: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)
    fleet: Fleet = field(init=False)
    names: Names = field(init=False)
    vault: Vault = field(init=False)
    disk: Path = field(init=False)
    another: PgBouncer | None = None

    @property
    def bouncers(self) -> list[PgBouncer]:
        return [self.bouncer, *([self.another] if self.another else [])]

    @property
    def relay(self) -> Relay:
        return self.relays[self.at]

    def servers(self, clients: int) -> int:
        """How many of so many clients PgBouncer serves at once."""
        return min(clients, int(self.bouncer.settings.get("default_pool_size", clients)))

    async def connect_as_admin(self) -> Any:
        return await asyncpg.connect(**self.stack.postgres.admin, database=DATABASE)

    @asynccontextmanager
    async def admin(self) -> AsyncIterator[Any]:
        """A connection as the administrator, for the time of the block."""
        connection = await self.connect_as_admin()
        try:
            yield connection
        finally:
            await connection.close()

    async def connect_as_client(self) -> Any:
        """Through PgBouncer and past every relay before it, with the application's name."""
        return await connector(self.stack.settings(through=self.bouncer))()


#: Entered, it begins; left, it has ended.
Fault = Callable[[Place], AbstractAsyncContextManager[None]]


@asynccontextmanager
async def again_and_again(
    act: Callable[[], Awaitable[object]], pause: float
) -> AsyncIterator[None]:
    """`act` for as long as the block lasts; once at least, and each time to its end."""
    over = asyncio.Event()

    async def repeat() -> None:
        while not over.is_set():
            await act()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), pause)

    repeating = asyncio.create_task(repeat())
    try:
        yield
    finally:
        over.set()
        await repeating
