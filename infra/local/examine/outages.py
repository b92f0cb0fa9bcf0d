"""Postgres and PgBouncer restarted under traffic."""

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial

from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import Lab, is_true_within, warm
from infra.local.examine.traffic import Traffic
from infra.local.fleet import Fleet
from infra.local.pgbouncer import PgBouncer

CALLERS = 3
#: From the end of a restart to the last failure, in seconds.
RECOVERY_LIMIT_S = 3.0
#: How long traffic goes on before and after.
BEFORE_S, AFTER_S = 0.5, RECOVERY_LIMIT_S + 1.0
#: How long PgBouncer is down, in seconds: each caller sends several requests in that time.
OUTAGE_S = 0.5
#: Until a write that failed must have been taken.
RESEND_S = 10.0


async def restarts(lab: Lab) -> Finding:
    pooled = await lab.works_pooled()
    keyed = {index for index, event in enumerate(lab.inputs.events) if "{key}" in str(event)}
    with lab.bouncer() as bouncer:
        environment = lab.pooled(bouncer) if pooled else lab.direct()
        fleet = lab.fleet(environment, concurrency=CALLERS, fork_server=await lab.fork_server())
        async with fleet:
            await warm(lab, fleet, CALLERS)
            rows_per_write = {index: await _rows_per_write(lab, fleet, index) for index in keyed}
            rows_before = await _rows(lab)
            traffic = Traffic(lab, fleet, CALLERS)
            recoveries, failures = {}, {}
            restarting: dict[str, Callable[[], Awaitable[None]]] = {
                "Postgres": lambda: _restart_postgres(lab)
            }
            if pooled:
                restarting["PgBouncer"] = lambda: _restart_pgbouncer(bouncer)
            for name, restart in restarting.items():
                seen = len(traffic.requests)
                async with traffic:
                    await asyncio.sleep(BEFORE_S)
                    await restart()
                    ended = time.monotonic()
                    await asyncio.sleep(AFTER_S)
                failed = [each for each in traffic.requests[seen:] if not each.succeeded]
                last = max((each.finished_at for each in failed), default=ended)
                recoveries[name] = max(0.0, last - ended)
                failures[name] = (len(failed), len(traffic.requests) - seen)
            doubled = 0
            if keyed:
                sent = {each.key: each.index for each in traffic.requests if each.index in keyed}
                await _resend(traffic, sent)
                expected = sum(rows_per_write[index] for index in sent.values())
                doubled = await _rows(lab) - rows_before - expected
    parts = [
        f"{name}: {failures[name][0]} of {failures[name][1]} failed, recovered after"
        f" {recoveries[name]:.1f} s"
        for name in recoveries
    ]
    if keyed:
        parts.append(f"{max(0, doubled)} rows doubled, {max(0, -doubled)} lost")
    return decided(
        all(each <= RECOVERY_LIMIT_S for each in recoveries.values()) and not doubled,
        "; ".join(parts),
        **{f"failed_{name.lower()}": count for name, (count, _) in failures.items()},
        **{f"recovery_{name.lower()}_s": round(each, 2) for name, each in recoveries.items()},
        rows_doubled=max(0, doubled) if keyed else None,
        rows_lost=max(0, -doubled) if keyed else None,
    )


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
    async with lab.admin() as admin:
        counts = [await admin.fetchval(f'SELECT count(*) FROM "{each}"') for each in lab.tables]  # noqa: S608  # names from the catalog
        return sum(counts)


async def _rows_per_write(lab: Lab, fleet: Fleet, index: int) -> int:
    """Return how many rows one write of that event adds."""
    before = await _rows(lab)
    await Traffic(lab, fleet, 1).send(index, lab.new_key())
    return await _rows(lab) - before


async def _resend(traffic: Traffic, sent: Mapping[str, int]) -> None:
    """Send every write that was not confirmed again with its key, until it is."""
    confirmed = {each.key for each in traffic.requests if each.succeeded}
    for key, index in sent.items():
        if key not in confirmed:
            await is_true_within(RESEND_S, partial(traffic.send, index, key))
