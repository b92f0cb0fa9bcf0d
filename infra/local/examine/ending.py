"""The end of a sandbox: what it closes at SIGTERM, and what is left of it without one."""

import asyncio
import re
import time

from infra.database.roles import APP
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import Lab, frozen
from infra.local.fleet import Ending
from infra.local.fleet.sandbox import SHUTDOWN_SECONDS
from infra.local.pgbouncer import PgBouncer

CLOSED = re.compile(f"/{APP}@.*closing because: client close request")
#: How long PgBouncer may take to notice, in seconds; and what a FIN that never comes is waited for.
NOTICE_S, VANISHED_S = 0.3, 2.0


async def shutdown(lab: Lab) -> Finding:
    with lab.bouncer() as bouncer:
        held, closed, took_ms = await _end_gracefully(lab, bouncer)
        killed = await _left_after(lab, bouncer, Ending.KILL, NOTICE_S)
        vanished = None
        if lab.no_filter is None:
            vanished = await _left_after(lab, bouncer, Ending.VANISH, VANISHED_S)
    after = f"left for PgBouncer to find: {killed} after SIGKILL" + (
        f", {vanished} after vanishing" if vanished is not None else ""
    )
    if not held:
        return decided(True, f"it holds no connection between events; {after}")
    return decided(
        closed >= held,
        f"{closed} of {held} connections closed in {took_ms:.0f} ms of"
        f" {SHUTDOWN_SECONDS * 1000:.0f}; {after}",
        held=held,
        closed=closed,
        took_ms=round(took_ms),
        left_after_kill=killed,
        left_after_vanishing=vanished,
    )


async def _end_gracefully(lab: Lab, bouncer: PgBouncer) -> tuple[int, int, float]:
    """Connections that it had, how many of them it closed, and how long it took to exit."""
    async with lab.fleet(lab.pooled(bouncer)) as fleet:
        await fleet.invoke(lab.event(0), cold=True)
        await frozen(fleet)
        if not fleet.sandboxes:
            raise UnknownError("its process ended after the first event")
        [sandbox] = fleet.sandboxes
        held = _clients(bouncer)
        closed_before = len(CLOSED.findall(bouncer.log_since_start()))
        started = time.monotonic()
        await fleet.retire(sandbox)
        took_ms = (time.monotonic() - started) * 1000
    await asyncio.sleep(NOTICE_S)
    return held, len(CLOSED.findall(bouncer.log_since_start())) - closed_before, took_ms


async def _left_after(lab: Lab, bouncer: PgBouncer, how: Ending, seconds: float) -> int:
    before = _clients(bouncer)
    filtering = lab.packet_filter() if how is Ending.VANISH else None
    async with lab.fleet(lab.pooled(bouncer), packet_filter=filtering) as fleet:
        await fleet.invoke(lab.event(0), cold=True)
        await frozen(fleet)
        for sandbox in list(fleet.sandboxes):
            await fleet.retire(sandbox, how)
        await asyncio.sleep(seconds)
        return _clients(bouncer) - before


def _clients(bouncer: PgBouncer) -> int:
    return sum(row["user"] == APP for row in bouncer.show("CLIENTS"))
