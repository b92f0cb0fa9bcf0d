"""A cold start: from a new process to the first answer."""

import asyncio
import contextlib
import time
from pathlib import Path

import psutil

from infra.local.examine import answers
from infra.local.examine.finding import Finding, decided
from infra.local.examine.lab import Lab
from infra.local.fleet.sandbox import INIT_SECONDS, Sandbox
from infra.local.tcp_proxy import TcpProxy

#: Lambda's, for the init phase.
INIT_LIMIT_S = 10.0


async def starts(lab: Lab) -> Finding:
    pooled = await lab.works_pooled()
    with lab.bouncer() as bouncer, contextlib.ExitStack() as undo:
        server = bouncer if pooled else lab.stack.postgres
        proxy = undo.enter_context(TcpProxy(server.host, server.port))
        environment = lab.pooled(bouncer, proxy.port) if pooled else lab.direct(proxy.port)
        started = time.monotonic()
        sandbox = await Sandbox.start(
            lab.inputs.handler,
            environment,
            root=lab.inputs.root,
            python=lab.inputs.python,
            log=lab.new_log(),
        )
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(sandbox.settled(), INIT_SECONDS)
            init = time.monotonic() - started - _waited_for_processor(sandbox.pid)
            answer = await sandbox.invoke(lab.event(0), 10.0)
            used = 0.0
            with contextlib.suppress(psutil.NoSuchProcess):
                times = psutil.Process(sandbox.pid).cpu_times()
                used = times.user + times.system
        finally:
            await sandbox.end()
        trips = proxy.round_trips
    path = "through PgBouncer" if pooled else "straight to Postgres"
    return decided(
        lab.is_right(0, answer) and init < INIT_LIMIT_S,
        f"init {init:.2f} s of {INIT_LIMIT_S:.0f}; first answer after {used:.2f} s of CPU and"
        f" {trips} round trips {path}"
        + ("" if lab.is_right(0, answer) else f": {answers.described(answer)}"),
        init_s=round(init, 3),
        cpu_s=round(used, 3),
        round_trips=trips,
    )


def _waited_for_processor(pid: int) -> float:
    """Seconds in which it could have run, and another process did: a busy machine's, not its."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0
