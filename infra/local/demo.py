"""Runs `make demo` and `make run`."""

import asyncio
import contextlib
import json
import os
import socket
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from importlib.metadata import version
from pathlib import Path

import asyncpg
from aiohttp import web

from infra.local import LabError, compose, signals
from infra.local.fleet import InvocationResult, http_front_end
from infra.local.service import SAMPLE, Service
from infra.local.stack import ENDPOINTS, Stack

WARM_INVOCATIONS = 4

COMMAND_LINE = """\
           eval "$(.venv/bin/python -m infra.local env)" && .venv/bin/python -m handler 1
"""
show = partial(print, flush=True)
STOPPED = "stopped    the sandbox, PgBouncer and Postgres; nothing is left running"

#: The backend that ran the most recent query.
SERVED_BY = """
SELECT pid FROM pg_stat_activity
WHERE usename = $1 ORDER BY query_start DESC LIMIT 1
"""
BACKENDS = """
SELECT usename, count(*) FROM pg_stat_activity
WHERE backend_type = 'client backend' GROUP BY usename ORDER BY usename
"""


def demo(service: Service = SAMPLE) -> int:
    """Run one cold invocation and some warm ones. Raises LabError if one does not return 200."""
    if compose.is_inside_compose():
        compose_stack = signals.run_async(compose.Stack.find)
        postgres = compose_stack.postgres
        print(
            f"stack      Compose's Postgres {postgres.version}, "
            f"at most {postgres.max_connections} connections"
        )
        signals.run_async(_invoke, compose_stack)
        print("stopped    the sandbox")
        return 0
    with _stack(service) as stack:
        signals.run_async(_invoke, stack)
    print(STOPPED)
    return 0


def run(listener: socket.socket, service: Service = SAMPLE) -> int:
    """Serve HTTP on `listener` until Ctrl-C."""
    with _stack(service) as stack, contextlib.suppress(KeyboardInterrupt):
        signals.run_async(_serve, stack, listener)
    print(f"\n{STOPPED}")
    return 0


@contextlib.contextmanager
def _stack(service: Service) -> Iterator[Stack]:
    """Run a stack and print its progress."""
    started = time.monotonic()
    new_stack = Stack(service=service, report=lambda step: show(f"starting   {step}"))
    with new_stack as stack, stack.published() as published:
        pgbouncer_version = ".".join(map(str, stack.pgbouncer.program.version))
        show(
            f"stack      Postgres {stack.postgres.version}, at most "
            f"{stack.postgres.max_connections} connections, behind PgBouncer {pgbouncer_version}: "
            f"transaction pooling, SCRAM, TLS 1.3; up in {time.monotonic() - started:.1f} s"
        )
        if not published:
            show(f"           {ENDPOINTS.name} belongs to another running stack")
        yield stack


async def _invoke(stack: compose.RunningStack) -> None:
    service = stack.service
    admin = await asyncpg.connect(**stack.postgres.admin, database=service.database)
    try:
        with _sandboxes_log() as logs:
            async with service.fleet(stack.environment(), logs=logs) as fleet:
                client = f"awslambdaric {version('awslambdaric')}"
                show(f"sandbox    a separate process with {client}; this one is {os.getpid()}\n")
                show(f"{'':11}{'ms':>8}  {'process':>8}  {'pg_backend_pid':>14}  response")
                for _ in range(1 + WARM_INVOCATIONS):
                    result = await fleet.invoke(service.event)
                    body = _body(result)
                    backend_pid = await admin.fetchval(SERVED_BY, service.app)
                    start = "cold" if result.cold else "warm"
                    show(f"{start:11}{result.ms:8.1f}  {result.pid:8}  {backend_pid:14}  {body}")
                backends = dict(await admin.fetch(BACKENDS))
                clients = [
                    row for row in stack.pgbouncer.show("CLIENTS") if row["user"] == service.app
                ]
                counts = ", ".join(f"{count} {user}" for user, count in backends.items())
                print(
                    f"\nPostgres   {sum(backends.values())} of {stack.postgres.max_connections} "
                    f"connections: {counts}\nPgBouncer  {len(clients)} client: {service.app}"
                )
    finally:
        await admin.close()


@contextlib.contextmanager
def _sandboxes_log() -> Iterator[Path]:
    """Yield a folder for the sandboxes' output, and print the output after the block, so that it is
    not mixed with the rows of the table."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield Path(folder)
        finally:
            print("\nlog        of the sandbox, one line for each invocation, without metrics:")
            for log in sorted(Path(folder).glob("*.log")):
                for line in log.read_text(errors="replace").splitlines():
                    print(_without_metrics(line))
            print()


def _without_metrics(line: str) -> str:
    with contextlib.suppress(ValueError, TypeError, KeyError):
        fields = json.loads(line)
        del fields["_aws"]
        return json.dumps(fields)
    return line


def _body(result: InvocationResult) -> str:
    """Return the response's body. Raises LabError if its status is not 200."""
    if result.error or result.payload.get("statusCode") != 200:
        raise LabError(f"the invocation did not return 200: {result.payload}")
    return str(result.payload["body"])


async def _serve(stack: Stack, listener: socket.socket) -> None:
    service = stack.service
    async with service.fleet(stack.environment(), concurrency=10) as fleet:
        runner = web.AppRunner(
            http_front_end.application(fleet), access_log=None, shutdown_timeout=1
        )
        await runner.setup()
        await web.SockSite(runner, listener).start()
        address = f"http://127.0.0.1:{listener.getsockname()[1]}{service.path}"
        show(
            f"\nserving    {address} until Ctrl-C; in another terminal:\n"
            f"           curl {address}\n"
            f"{COMMAND_LINE if service is SAMPLE else ''}"
            "           make psql\n"
        )
        try:
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()
