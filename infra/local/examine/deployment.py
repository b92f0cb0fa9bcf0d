"""A deployment under traffic: new sandboxes start beside the old ones, then the old ones end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from infra.database.roles import APP
from infra.local.examine.finding import Finding, conclude
from infra.local.examine.lab import BACKENDS, POOL_SIZE, Lab
from infra.local.examine.traffic import Traffic

#: The number of sandboxes, and how many of them are replaced at the same time.
SANDBOXES, BATCH_SIZE = 8, 4
#: Enough connections to Postgres for the old sandboxes, but not for a batch of new ones as well.
DIRECT_LIMIT = 9
CALLERS = 3


async def deployment(lab: Lab) -> Finding:
    async with lab.admin() as admin:
        await admin.execute(f"ALTER ROLE {APP} CONNECTION LIMIT {DIRECT_LIMIT}")
        try:
            direct, direct_peak = await _deploy(lab, admin, lab.direct())
        finally:
            await admin.execute(f"ALTER ROLE {APP} CONNECTION LIMIT -1")
        with lab.bouncer() as bouncer:
            pooled, pooled_peak = await _deploy(lab, admin, lab.pooled(bouncer))
    failed = len(pooled.failed)
    return conclude(
        not failed,
        f"through PgBouncer {failed} of {len(pooled.requests)} failed on {pooled_peak} of"
        f" {POOL_SIZE} backends{f' ({pooled.causes})' if failed else ''}; directly to a Postgres"
        f" with {DIRECT_LIMIT} connections {len(direct.failed)} of {len(direct.requests)} failed on"
        f" {direct_peak}",
        failed=failed,
        requests=len(pooled.requests),
        peak_backends=pooled_peak,
        failed_direct=len(direct.failed),
        requests_direct=len(direct.requests),
        peak_backends_direct=direct_peak,
    )


async def _deploy(lab: Lab, admin: Any, environment: dict[str, str]) -> tuple[Traffic, int]:
    """Return the traffic, including the first requests of new sandboxes, and the peak of
    backends."""
    fleet = await lab.forked_fleet(environment, concurrency=2 * SANDBOXES + CALLERS)
    async with fleet, _sampled_backends(admin) as samples:
        for _ in range(0, SANDBOXES, BATCH_SIZE):
            await lab.warm_up(fleet, BATCH_SIZE)
        old = list(fleet.sandboxes)
        traffic = Traffic(lab, fleet, CALLERS)
        async with traffic:
            for start in range(0, SANDBOXES, BATCH_SIZE):
                await asyncio.gather(
                    *(traffic.send(n, lab.new_key(), cold=True) for n in range(BATCH_SIZE))
                )
                await asyncio.gather(*map(fleet.retire, old[start : start + BATCH_SIZE]))
            await asyncio.sleep(0.5)
    return traffic, max(samples, default=0)


@contextlib.asynccontextmanager
async def _sampled_backends(admin: Any) -> AsyncIterator[list[int]]:
    """Yield a list that gets the function's number of backends ten times a second."""
    samples: list[int] = []

    async def sample() -> None:
        while True:
            samples.append(await admin.fetchval(BACKENDS, APP))
            await asyncio.sleep(0.1)

    sampling = asyncio.create_task(sample())
    try:
        yield samples
    finally:
        sampling.cancel()
        await asyncio.wait({sampling})
