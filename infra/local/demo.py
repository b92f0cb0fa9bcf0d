"""What a person sees of the laboratory: `make demo` and `make run`."""

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import Iterator
from importlib.metadata import version

import asyncpg
from aiohttp import web

from infra.database.roles import APP
from infra.local import LabError, compose, interruption
from infra.local.fleet import Answer, Fleet, front_door
from infra.local.stack import DATABASE, ENDPOINTS, Stack

WARM_INVOCATIONS = 4

#: Which backend ran the order's query last, seen from Postgres itself.
SERVED_BY = """
SELECT pid FROM pg_stat_activity
WHERE usename = $1 AND query LIKE '%FROM orders%' ORDER BY query_start DESC LIMIT 1
"""
BACKENDS = """
SELECT usename, count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' GROUP BY usename ORDER BY usename
"""


def demo() -> int:
    """One cold invocation and some warm ones. Raises LabError when one is not answered."""
    if compose.is_here():
        found = interruption.run(compose.Stack.find)
        at = found.postgres
        print(f"stack      Compose's Postgres {at.version}, {at.max_connections} connections")
        interruption.run(_invoke, found)
        print("ended      the sandbox")
        return 0
    with _stack() as stack:
        interruption.run(_invoke, stack)
    print("ended      the sandbox, PgBouncer and Postgres; nothing of them is left")
    return 0


def run(listener: socket.socket) -> int:
    """Serve on `listener` until Ctrl-C."""
    with _stack() as stack, contextlib.suppress(KeyboardInterrupt):
        interruption.run(_serve, stack, listener)
    print("\nended      the sandbox, PgBouncer and Postgres; nothing of them is left")
    return 0


@contextlib.contextmanager
def _stack() -> Iterator[Stack]:
    begun = time.monotonic()

    def report(line: str) -> None:
        print(f"starting   {line}", flush=True)

    with Stack(report=report) as stack, stack.published() as published:
        bouncer = ".".join(map(str, stack.pgbouncer.program.version))
        print(
            f"stack      Postgres {stack.postgres.version}, {stack.postgres.max_connections} "
            f"connections at most, behind PgBouncer {bouncer}: transaction pooling, SCRAM, "
            f"TLS 1.3; up in {time.monotonic() - begun:.1f} s"
        )
        if not published:
            print(f"           {ENDPOINTS.name} speaks of another stack that is up")
        yield stack


async def _invoke(stack: Stack | compose.Stack) -> None:
    admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        async with Fleet(stack.environment()) as fleet:
            client = f"awslambdaric {version('awslambdaric')}"
            print(f"sandbox    a process of its own with {client}; this one is {os.getpid()}\n")
            print(f"{'':11}{'ms':>8}  {'process':>8}  {'pg_backend_pid':>14}  answer")
            for _ in range(1 + WARM_INVOCATIONS):
                answer = await fleet.invoke(front_door.api_gateway_event("GET", "/orders/1"))
                order = _order(answer)
                served_by = await admin.fetchval(SERVED_BY, APP)
                kind = "cold" if answer.cold else "warm"
                print(
                    f"{kind:11}{answer.ms:8.1f}  {answer.pid:8}  {served_by:14}  {order}",
                    flush=True,
                )
            backends = dict(await admin.fetch(BACKENDS))
            clients = [row for row in stack.pgbouncer.show("CLIENTS") if row["user"] == APP]
            print(
                f"\nPostgres   {sum(backends.values())} of {stack.postgres.max_connections} "
                f"connections: {', '.join(f'{count} {user}' for user, count in backends.items())}"
                f"\nPgBouncer  {len(clients)} client: {APP}"
            )
    finally:
        await admin.close()


def _order(answer: Answer) -> str:
    if answer.error or answer.payload.get("statusCode") != 200:
        raise LabError(f"the invocation was not answered with an order: {answer.payload}")
    return str(answer.payload["body"])


async def _serve(stack: Stack, listener: socket.socket) -> None:
    async with Fleet(stack.environment(), concurrency=10) as fleet:
        runner = web.AppRunner(front_door.application(fleet), access_log=None, shutdown_timeout=1)
        await runner.setup()
        await web.SockSite(runner, listener).start()
        port = listener.getsockname()[1]
        print(
            f"\nserving    http://127.0.0.1:{port}/orders/1 until Ctrl-C; in another terminal:\n"
            f"           curl http://127.0.0.1:{port}/orders/1\n"
            '           eval "$(.venv/bin/python -m infra.local env)" && '
            ".venv/bin/python -m handler 1\n"
            "           make psql\n",
            flush=True,
        )
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
