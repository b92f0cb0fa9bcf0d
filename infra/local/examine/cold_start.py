"""A cold start: from a new process to the first response."""

import asyncio
import contextlib
import time
from pathlib import Path

import psutil

from infra.local.examine import responses
from infra.local.examine.finding import Finding, conclude
from infra.local.examine.lab import Lab, works_pooled
from infra.local.fleet.sandbox import INIT_SECONDS, Sandbox
from infra.local.tcp_proxy import TcpProxy

#: Lambda's limit for the init phase.
INIT_LIMIT_S = 10.0


async def cold_start(lab: Lab) -> Finding:
    pooled = await works_pooled(lab)
    with lab.bouncer() as bouncer, contextlib.ExitStack() as cleanup:
        server = bouncer if pooled else lab.stack.postgres
        proxy = cleanup.enter_context(TcpProxy(server.host, server.port))
        environment = lab.pooled(bouncer, proxy.port) if pooled else lab.direct(proxy.port)
        started = time.monotonic()
        sandbox = await Sandbox.start(
            lab.inputs.handler,
            environment,
            root=lab.inputs.root,
            python=lab.inputs.python,
            log=lab.logs.new_folder() / "sandbox.log",
        )
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.settled(), INIT_SECONDS)
            init_s = time.monotonic() - started - _seconds_without_processor(sandbox.pid)
            result = await sandbox.invoke(lab.event(0), 10.0)
            cpu_s = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(sandbox.pid).cpu_times()
                cpu_s = times.user + times.system
        finally:
            await sandbox.end()
        round_trips = proxy.round_trips
    path = "through PgBouncer" if pooled else "directly to Postgres"
    is_correct = lab.is_correct(0, result)
    return conclude(
        is_correct and init_s < INIT_LIMIT_S,
        f"init {init_s:.2f} of {INIT_LIMIT_S:.0f} s; first response after {cpu_s:.2f} s of CPU and"
        f" {round_trips} round trips {path}"
        + ("" if is_correct else f": {responses.describe(result)}"),
        init_s=round(init_s, 3),
        cpu_s=round(cpu_s, 3),
        round_trips=round_trips,
    )


def _seconds_without_processor(pid: int) -> float:
    """Return how long the process was ready to run while others had the processors; 0 where this is
    not known."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
