"""The connections that a sandbox closes at SIGTERM, and those that remain after other endings."""

import asyncio
import re
import time

from infra.database.roles import APP
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import Lab, wait_until_frozen
from infra.local.fleet import Ending
from infra.local.fleet.sandbox import SHUTDOWN_SECONDS
from infra.local.network import Filter
from infra.local.pgbouncer import PgBouncer

CLOSED = re.compile(f"/{APP}@.*closing because: client close request")
#: Seconds in which PgBouncer notices a FIN, and to wait for one that must not arrive.
NOTICE_S, VANISHED_S = 0.3, 2.0


async def shutdown(lab: Lab) -> Finding:
    with lab.bouncer() as bouncer:
        open_before, closed, duration_ms = await _end_gracefully(lab, bouncer)
        after_kill = await _remaining_after(lab, bouncer, Ending.KILL, NOTICE_S)
        after_vanishing = None
        if lab.no_filter is None:
            after_vanishing = await _remaining_after(lab, bouncer, Ending.VANISH, VANISHED_S)
    remaining = f"connections that remain open: {after_kill} after SIGKILL" + (
        f", {after_vanishing} after vanishing" if after_vanishing is not None else ""
    )
    if not open_before:
        return conclude(True, f"no connection is open between events; {remaining}")
    return conclude(
        closed >= open_before,
        f"{closed} of {open_before} connections closed in {duration_ms:.0f} of"
        f" {SHUTDOWN_SECONDS * 1000:.0f} ms; {remaining}",
        held=open_before,
        closed=closed,
        took_ms=round(duration_ms),
        left_after_kill=after_kill,
        left_after_vanishing=after_vanishing,
    )


async def _end_gracefully(lab: Lab, bouncer: PgBouncer) -> tuple[int, int, float]:
    """Return how many connections a sandbox had, how many it closed, and the milliseconds until it
    exited."""
    async with lab.fleet(lab.pooled(bouncer)) as fleet:
        await fleet.invoke(lab.event(0), cold=True)
        await wait_until_frozen(fleet)
        if not fleet.sandboxes:
            raise UnknownError("its process ended after the first event")
        [sandbox] = fleet.sandboxes
        open_before = _count_clients(bouncer)
        closed_before = len(CLOSED.findall(bouncer.log_since_start()))
        started = time.monotonic()
        await fleet.retire(sandbox)
        duration_ms = (time.monotonic() - started) * 1000
    await asyncio.sleep(NOTICE_S)
    closed = len(CLOSED.findall(bouncer.log_since_start())) - closed_before
    return open_before, closed, duration_ms


async def _remaining_after(lab: Lab, bouncer: PgBouncer, ending: Ending, seconds: float) -> int:
    """Return how many connections are open `seconds` after a sandbox ended."""
    before = _count_clients(bouncer)
    packet_filter = Filter() if ending is Ending.VANISH else None
    async with lab.fleet(lab.pooled(bouncer), packet_filter=packet_filter) as fleet:
        await fleet.invoke(lab.event(0), cold=True)
        await wait_until_frozen(fleet)
        for sandbox in list(fleet.sandboxes):
            await fleet.retire(sandbox, ending)
        await asyncio.sleep(seconds)
        return _count_clients(bouncer) - before


def _count_clients(bouncer: PgBouncer) -> int:
    return sum(row["user"] == APP for row in bouncer.show("CLIENTS"))
