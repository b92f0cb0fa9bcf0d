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
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session

from handler import orders
from handler.warm.database.engine import create_engine
from infra.database.roles import APP
from infra.local import LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack
from tests.benchmarks.plan import SCALE_DURATION_S, Plan

Row = dict[str, Any]
#: Logins and goodbyes at a time, so that none waits for its turn longer than a client waits.
CONCURRENT_LOGINS = 20


def allow_many_sockets(clients: int) -> None:
    """Raise the limit of open files, for this process and those that it starts. Raises LabError."""
    files = clients + 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most != resource.RLIM_INFINITY and most < files:
        raise LabError(f"{most} open files are too few for {clients} clients: ulimit -n {files}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, most))


async def measure(
    stack: Stack, bouncer: PgBouncer, plan: Plan, report_progress: Callable[[str], None]
) -> list[Row]:
    admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        return [
            await _measure_one(stack, bouncer, admin, *scale, report_progress)
            for scale in plan.scales
        ]
    finally:
        await admin.close()


async def _measure_one(
    stack: Stack,
    bouncer: PgBouncer,
    admin: "asyncpg.Connection[Any]",
    clients: int,
    active_clients: int,
    report_progress: Callable[[str], None],
) -> Row:
    settings = stack.settings(through=bouncer, connect_timeout=30, max_idle=600)
    engines = [create_engine(settings, isolation_level="AUTOCOMMIT") for _ in range(clients)]
    process = psutil.Process(bouncer.process.pid if bouncer.process else 0)
    try:
        before = process.memory_info().rss
        await _for_each(_read, engines)
        memory = (process.memory_info().rss - before) / clients
        report_progress(f"scale: {clients} clients, {active_clients} active")
        latencies_ms: list[float] = []
        started, used = time.perf_counter(), sum(process.cpu_times()[:2])
        end = started + SCALE_DURATION_S

        async def send_requests() -> None:
            while time.perf_counter() < end:
                engine = next(turns)
                start = time.perf_counter()
                await _read(engine)
                latencies_ms.append((time.perf_counter() - start) * 1000)

        # Each client has one connection: none is asked twice at a time.
        turns = _turns(engines)
        await asyncio.gather(*(send_requests() for _ in range(active_clients)))
        seconds = time.perf_counter() - started
        backends = await admin.fetchval(
            "SELECT count(*) FROM pg_stat_activity WHERE usename = $1", APP
        )
        row = {
            "clients": clients,
            "active_clients": active_clients,
            "requests_per_s": round(len(latencies_ms) / seconds),
            "p99_ms": round(quantiles(latencies_ms, n=100, method="inclusive")[98], 2),
            "backends": backends,
            "pgbouncer_cpu": round((sum(process.cpu_times()[:2]) - used) / seconds, 2),
        }
        if clients >= 1000:  # of fewer, a page of memory says nothing
            row["pgbouncer_bytes_per_client"] = round(memory)
        return row
    except DBAPIError as error:
        raise LabError(f"{clients} clients on one PgBouncer: {error.orig}") from None
    finally:
        await _for_each(AsyncEngine.dispose, engines)


async def _for_each(
    action: Callable[[AsyncEngine], Coroutine[Any, Any, None]], engines: list[AsyncEngine]
) -> None:
    some = asyncio.Semaphore(CONCURRENT_LOGINS)

    async def one(engine: AsyncEngine) -> None:
        async with some:
            await action(engine)

    await asyncio.gather(*map(one, engines))


def _turns(engines: list[AsyncEngine]) -> Any:
    """All of them, shuffled, again and again."""
    shuffled = random.sample(engines, len(engines))
    while True:
        yield from shuffled


async def _read(engine: AsyncEngine) -> None:
    def find(session: Session) -> None:
        with session:
            order_id = random.randint(1, 1000)
            if session.scalar(orders.BY_ID, {"id": order_id}) is None:
                raise LabError(f"there is no order {order_id}")

    await async_sessionmaker(engine, expire_on_commit=False)().run_sync(find)
