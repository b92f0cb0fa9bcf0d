"""Restarts of Postgres and PgBouncer under traffic."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import Lab, becomes_true, works_pooled
from infra.local.examine.traffic import Traffic
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer

CALLERS = 3
#: Seconds from the end of a restart to the last failure.
RECOVERY_LIMIT_S = 3.0
#: Seconds of traffic before and after a restart.
BEFORE_S, AFTER_S = 0.5, RECOVERY_LIMIT_S + 1.0
#: How long PgBouncer is down, in seconds: each caller sends several requests in that time.
OUTAGE_S = 0.5
#: Seconds in which a repeated write must succeed.
RESEND_S = 10.0


async def restarts(lab: Lab) -> Finding:
    pooled = await works_pooled(lab)
    keyed = {index for index, event in enumerate(lab.inputs.events) if "{key}" in str(event)}
    with lab.bouncer() as bouncer:
        environment = lab.pooled(bouncer) if pooled else lab.direct()
        restart_functions: dict[str, Callable[[], Awaitable[None]]] = {
            "Postgres": partial(_restart_postgres, lab)
        }
        if pooled:
            restart_functions["PgBouncer"] = partial(_restart_pgbouncer, bouncer)
        async with await lab.forked_fleet(environment, concurrency=CALLERS) as fleet:
            await lab.warm_up(fleet, CALLERS)
            rows_per_write = {index: await _rows_per_write(lab, fleet, index) for index in keyed}
            rows_before = await _rows(lab)
            traffic = Traffic(lab, fleet, CALLERS)
            measurements = {
                name: await _measure_restart(traffic, restart)
                for name, restart in restart_functions.items()
            }
            surplus = 0
            if keyed:
                writes = {sent.key: sent.index for sent in traffic.requests if sent.index in keyed}
                await _resend_failed(traffic, writes)
                expected = sum(rows_per_write[index] for index in writes.values())
                surplus = await _rows(lab) - rows_before - expected
    doubled, lost = max(0, surplus), max(0, -surplus)
    parts = [
        f"{name}: {failed} of {requests} failed, recovered after {recovery_s:.1f} s"
        for name, (failed, requests, recovery_s) in measurements.items()
    ]
    if not pooled:
        parts.append("PgBouncer: not measured, see `pooling`")
    if keyed:
        parts.append(f"{doubled} rows doubled, {lost} lost")
    numbers: dict[str, float] = {}
    for name, (failed, _, recovery_s) in measurements.items():
        numbers[f"failed_{name.lower()}"] = failed
        numbers[f"recovery_{name.lower()}_s"] = round(recovery_s, 2)
    return conclude(
        all(recovery_s <= RECOVERY_LIMIT_S for _, _, recovery_s in measurements.values())
        and not surplus,
        "; ".join(parts),
        **numbers,
        rows_doubled=doubled if keyed else None,
        rows_lost=lost if keyed else None,
    )


async def _measure_restart(
    traffic: Traffic, restart: Callable[[], Awaitable[None]]
) -> tuple[int, int, float]:
    """Return the number of failed and of all requests, and the seconds from the end of the restart
    to the last failure."""
    start = len(traffic.requests)
    async with traffic:
        await asyncio.sleep(BEFORE_S)
        await restart()
        restarted_at = time.monotonic()
        await asyncio.sleep(AFTER_S)
    requests = traffic.requests[start:]
    failures = [request.finished_at for request in requests if not request.succeeded]
    last_failure = max(failures, default=restarted_at)
    return len(failures), len(requests), max(0.0, last_failure - restarted_at)


async def _restart_postgres(lab: Lab) -> None:
    process = lab.stack.postgres.process
    if process is None:
        raise UnknownError("Postgres does not run")
    process.send_signal(signal.SIGINT)
    await asyncio.to_thread(process.wait)
    await asyncio.to_thread(lab.stack.postgres.start)


async def _restart_pgbouncer(bouncer: PgBouncer) -> None:
    await asyncio.to_thread(bouncer.stop)
    await asyncio.sleep(OUTAGE_S)
    await asyncio.to_thread(bouncer.start)


async def _rows(lab: Lab) -> int:
    """Return the number of rows in all tables that the function uses."""
    async with lab.admin() as admin:
        counts = [
            await admin.fetchval(f'SELECT count(*) FROM "{table}"')  # noqa: S608  # from the catalog
            for table in lab.baseline.tables
        ]
        return sum(counts)


async def _rows_per_write(lab: Lab, fleet: Fleet, index: int) -> int:
    """Return how many rows one write of that event adds."""
    before = await _rows(lab)
    await Traffic(lab, fleet, 1).send(index, lab.new_key())
    return await _rows(lab) - before


async def _resend_failed(traffic: Traffic, writes: Mapping[str, int]) -> None:
    """Repeat each failed write with its key until it succeeds. `writes`: event by key."""
    succeeded = {request.key for request in traffic.requests if request.succeeded}
    for key, index in writes.items():
        if key not in succeeded:
            await becomes_true(partial(traffic.send, index, key), RESEND_S)
