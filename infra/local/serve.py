"""Serves a stack and a fleet to the pytest plugin, which runs in a service's own interpreter.

The first line on stdout is JSON with `env`, `owner`, `postgres` and `admin`, as in
`.stack/endpoints.json`. Each line on stdin is an invocation, `{"id": …, "event": …, "cold": …}`;
its result on stdout has the `id` and the fields of `InvocationResult`. Results may come in any
order. The server exits at the end of its stdin.
"""

import asyncio
import dataclasses
import json
import sys
from typing import Any

from infra.local.postgres import ADMIN
from infra.local.service import Service
from infra.local.signals import run_async
from infra.local.stack import Stack

#: The reserved concurrency.
CONCURRENCY = 10


def serve(service: Service) -> int:
    with Stack(service=service) as stack:
        _print(
            {
                "env": {**stack.service.environment, **stack.environment()},
                "owner": stack.owner_environment(),
                "postgres": {"host": stack.postgres.host, "port": stack.postgres.port},
                "admin": {"user": ADMIN, "password": stack.postgres.password},
            }
        )
        run_async(_invoke_each_line, stack)
    return 0


async def _invoke_each_line(stack: Stack) -> None:
    reader = asyncio.StreamReader(limit=2**26)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), sys.stdin
    )
    logs = stack.folder / "logs"
    logs.mkdir(mode=0o700)
    async with (
        stack.service.fleet(stack.environment(), concurrency=CONCURRENCY, logs=logs) as fleet,
        asyncio.TaskGroup() as invocations,
    ):

        async def invoke(request: dict[str, Any]) -> None:
            result = await fleet.invoke(request["event"], cold=request.get("cold", False))
            _print({"id": request["id"], **dataclasses.asdict(result)})

        async for line in reader:
            invocations.create_task(invoke(json.loads(line)))


def _print(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)
