"""Many clients on one PgBouncer: each the real engine, with a connection of its own."""

import asyncio
import random
import resource
import time
from collections.abc import Callable, Coroutine
from statistics import quantiles
from typing import Any

import asyncpg
import psutil
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session

from handler import orders
from handler.engine import create_engine
from infra.database.roles import APP
from infra.local import LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from tests.benchmarks.plan import SCALES, SECONDS

Row = dict[str, Any]
#: Logins and goodbyes at a time, so that none waits for its turn longer than a client waits.
AT_ONCE = 20


def allow_many_sockets() -> None:
    """For this process and those that it starts: 2,000 clients have as many sockets, twice."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < 5000:
        raise LabError(f"{most} open files are too few for 2,000 clients: ulimit -n 5000")
    resource.setrlimit(resource.RLIMIT_NOFILE, (5000, most))


async def measure(stack: Stack, bouncer: PgBouncer, done: Callable[[str], None]) -> list[Row]:
    admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        return [await _one(stack, bouncer, admin, *scale, done) for scale in SCALES]
    finally:
        await admin.close()


async def _one(
    stack: Stack,
    bouncer: PgBouncer,
    admin: "asyncpg.Connection[Any]",
    clients: int,
    busy: int,
    done: Callable[[str], None],
) -> Row:
    settings = stack.settings(through=bouncer, connect_timeout=30, max_idle=600)
    engines = [create_engine(settings) for _ in range(clients)]
    process = psutil.Process(bouncer.process.pid if bouncer.process else 0)
    try:
        before = process.memory_info().rss
        await _each(_read, engines)
        memory = (process.memory_info().rss - before) / clients
        done(f"scale: {clients} clients, {busy} busy")
        took: list[float] = []
        begun = time.perf_counter()
        end = begun + SECONDS

        async def ask() -> None:
            while time.perf_counter() < end:
                engine = next(turns)
                start = time.perf_counter()
                await _read(engine)
                took.append((time.perf_counter() - start) * 1000)

        # Each client has one connection: none is asked twice at a time.
        turns = _turns(engines)
        await asyncio.gather(*(ask() for _ in range(busy)))
        seconds = time.perf_counter() - begun
        backends = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", APP
        )
        row = {
            "clients": clients,
            "busy": busy,
            "requests_per_s": round(len(took) / seconds),
            "p99_ms": round(quantiles(took, n=100, method="inclusive")[98], 2),
            "backends": backends,
        }
        if clients >= 1000:  # of fewer, a page of memory says nothing
            row["pgbouncer_bytes_per_client"] = round(memory)
        return row
    finally:
        await _each(AsyncEngine.dispose, engines)


async def _each(
    do: Callable[[AsyncEngine], Coroutine[Any, Any, None]], engines: list[AsyncEngine]
) -> None:
    some = asyncio.Semaphore(AT_ONCE)

    async def one(engine: AsyncEngine) -> None:
        async with some:
            await do(engine)

    await asyncio.gather(*map(one, engines))


def _turns(engines: list[AsyncEngine]) -> Any:
    """All of them, shuffled, again and again."""
    shuffled = random.sample(engines, len(engines))
    while True:
        yield from shuffled


async def _read(engine: AsyncEngine) -> None:
    def find(session: Session) -> None:
        with session:
            order_id = random.randint(1, 1000)  # noqa: S311  # no secret depends on it
            if session.scalar(orders.BY_ID, {"id": order_id}) is None:
                raise LabError(f"there is no order {order_id}")

    await async_sessionmaker(engine, expire_on_commit=False)().run_sync(find)
