"""Three incidents to practise on with docs/operations.md.

Run `python -m tests.incidents 1`, then `make status` in another terminal.
"""

import argparse
import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import asyncpg

from infra.local import signals
from infra.local.fleet import Fleet
from infra.local.signals import treat_sigterm_as_sigint
from infra.local.stack import DATABASE, Stack
from tests.events import http_api

#: The help does not name the causes: finding them is the exercise.
HELP = "Start incident 1, 2 or 3. Find its culprit with `make status` and docs/operations.md."
READ = http_api("GET", "/orders/1")
#: How many callers wait for the lock in the first incident.
CALLERS = 4
#: PgBouncer's client limit in the second incident.
SLOTS = 30
#: The pause between two failing requests, in seconds.
RETRY_S = 1.0


@asynccontextmanager
async def leaked_transaction(stack: Stack) -> AsyncIterator[None]:
    """Hold a lock in a forgotten transaction."""
    session = await asyncpg.connect(
        **stack.postgres.admin, database=DATABASE, server_settings={"application_name": "report"}
    )
    observer = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    finished = asyncio.Event()

    async def call(fleet: Fleet) -> None:
        while not finished.is_set():
            await fleet.invoke(READ)

    try:
        await session.execute("BEGIN")
        await session.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        async with Fleet(stack.environment(), concurrency=CALLERS) as fleet:
            callers = [asyncio.create_task(call(fleet)) for _ in range(CALLERS)]
            try:
                await _until(observer, "wait_event_type = 'Lock'", CALLERS)
                await observer.close()
                yield
            finally:
                finished.set()
                await session.execute("ROLLBACK")
                await asyncio.gather(*callers)
    finally:
        session.terminate()
        observer.terminate()


@asynccontextmanager
async def pooler_full(stack: Stack) -> AsyncIterator[None]:
    """Hold every client connection of PgBouncer with idle clients."""
    settings = stack.settings(through=stack.pgbouncer)
    with stack.pgbouncer.console() as console:
        console.execute(f"SET max_client_conn = {SLOTS}")
    idle: list[asyncpg.Connection[Any]] = []
    try:
        while len(idle) < SLOTS:
            idle.append(
                await asyncpg.connect(
                    host=settings.host,
                    port=settings.port,
                    user=settings.user,
                    password=settings.password.get_secret_value(),
                    database=settings.name,
                    ssl=stack.pgbouncer.ssl_context(),
                    statement_cache_size=0,
                    server_settings={"application_name": "dashboard"},
                )
            )
        async with _failing_requests(stack):
            yield
    finally:
        for connection in idle:
            connection.terminate()
        with stack.pgbouncer.console() as console:
            console.execute("SET max_client_conn = 2000")


@asynccontextmanager
async def bypass_pgbouncer(stack: Stack) -> AsyncIterator[None]:
    """Exhaust Postgres with a fleet that bypasses PgBouncer."""
    slots = stack.postgres.max_connections - 3  # reserved for superusers
    async with Fleet(stack.environment(direct=True), concurrency=slots) as fleet:
        await asyncio.gather(*(fleet.invoke(READ) for _ in range(slots)))
        yield


@asynccontextmanager
async def _failing_requests(stack: Stack) -> AsyncIterator[None]:
    """Send one request at a time during the block; the first one fails before the block begins."""
    finished = asyncio.Event()

    async def call(fleet: Fleet) -> None:
        while not finished.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S):
                    await finished.wait()
            await fleet.invoke(READ)

    async with Fleet(stack.environment(), concurrency=1) as fleet:
        await fleet.invoke(READ)
        caller = asyncio.create_task(call(fleet))
        try:
            yield
        finally:
            finished.set()
            await caller


async def _until(session: Any, condition: str, count: int) -> None:
    """Wait until `count` backends match, after cold starts on a possibly busy machine."""
    query = f"SELECT count(*) FROM pg_stat_activity WHERE {condition}"
    async with asyncio.timeout(60):
        while await session.fetchval(query) < count:
            await asyncio.sleep(0.02)


Incident = Callable[[Stack], AbstractAsyncContextManager[Any]]
INCIDENTS: dict[str, Incident] = {
    "leaked-transaction": leaked_transaction,
    "pooler-full": pooler_full,
    "straight": bypass_pgbouncer,
}


def chosen_incident(word: str) -> Incident:
    """Return the incident with a number from 1, or with a name."""
    by_number = {str(number): incident for number, incident in enumerate(INCIDENTS.values(), 1)}
    try:
        return (by_number | INCIDENTS)[word]
    except KeyError:
        raise argparse.ArgumentTypeError(f"{word!r} is not 1, 2 or 3") from None


async def _run_until_interrupted(stack: Stack, incident: Incident) -> None:
    async with incident(stack):
        print(
            "The incident has begun. In another terminal: make status. Ctrl-C ends it.", flush=True
        )
        await asyncio.Event().wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.incidents", description=HELP)
    parser.add_argument("incident", type=chosen_incident, metavar="1|2|3")
    incident = parser.parse_args().incident
    treat_sigterm_as_sigint()
    with Stack() as stack, stack.published() as published:
        if not published:
            parser.error("another stack is running: stop it first")
        with contextlib.suppress(KeyboardInterrupt):
            signals.run_async(_run_until_interrupted, stack, incident)


if __name__ == "__main__":
    main()
