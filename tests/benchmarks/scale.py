"""Many clients on one PgBouncer or several: each is the real engine with its own connection."""

import asyncio
import contextlib
import random
import resource
import time
from collections.abc import Callable, Coroutine
from statistics import quantiles
from typing import Any

import psutil
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Session

from handler import orders
from handler.warm.database.engine import create_engine
from infra.database.roles import APP
from infra.local import LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from tests.benchmarks.plan import SCALE_DURATION_S, SERVER_CONNECTIONS, Plan

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
    stack: Stack, sizes: dict[str, str | int], plan: Plan, report_progress: Callable[[str], None]
) -> list[Row]:
    """Measure each scale on new PgBouncers with the settings `sizes`, whose pools are together as
    large as one."""
    rows = []
    for clients, active_clients, pgbouncers in plan.scales:
        report_progress(
            f"scale: {clients} clients, {active_clients} active, {pgbouncers} PgBouncer"
        )
        settings = sizes | {"default_pool_size": SERVER_CONNECTIONS // pgbouncers}
        with contextlib.ExitStack() as stops:
            bouncers = [
                stops.enter_context(stack.another_pgbouncer(tls=False, settings=settings))
                for _ in range(pgbouncers)
            ]
            rows.append(await _measure_one(stack, bouncers, clients, active_clients))
    return rows


async def _measure_one(
    stack: Stack,
    bouncers: list[PgBouncer],
    clients: int,
    active_clients: int,
) -> Row:
    engines = []
    for number in range(clients):
        through = bouncers[number % len(bouncers)]
        settings = stack.settings(through=through, connect_timeout=30, max_idle=600)
        engines.append(create_engine(settings, isolation_level="AUTOCOMMIT"))
    processes = [psutil.Process(bouncer.process.pid) for bouncer in bouncers if bouncer.process]
    try:
        memory_before = _memory(processes)
        await _for_each(_read, engines)
        bytes_per_client = (_memory(processes) - memory_before) / clients
        latencies_ms: list[float] = []
        started, cpu_before = time.perf_counter(), _cpu_s(processes)
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
        servers = [server for bouncer in bouncers for server in bouncer.show("SERVERS")]
        row = {
            "clients": clients,
            "active_clients": active_clients,
            "pgbouncers": len(bouncers),
            "requests_per_s": round(len(latencies_ms) / seconds),
            "p99_ms": round(quantiles(latencies_ms, n=100, method="inclusive")[98], 2),
            "backends": sum(server["user"] == APP for server in servers),
            "pgbouncer_cpu": round((_cpu_s(processes) - cpu_before) / seconds, 2),
        }
        if clients >= 1000:  # of fewer, a page of memory says nothing
            row["pgbouncer_bytes_per_client"] = round(bytes_per_client)
        return row
    except DBAPIError as error:
        raise LabError(f"{clients} clients, PgBouncers: {len(bouncers)}: {error.orig}") from None
    finally:
        await _for_each(AsyncEngine.dispose, engines)


def _memory(processes: list[psutil.Process]) -> int:
    """Resident memory in bytes."""
    return sum(process.memory_info().rss for process in processes)


def _cpu_s(processes: list[psutil.Process]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes)


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
