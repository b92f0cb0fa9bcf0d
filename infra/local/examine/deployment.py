"""A deployment under traffic: new sandboxes beside the old ones, then the old ones end."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from infra.database.roles import APP
from infra.local.examine.finding import Finding, decided
from infra.local.examine.lab import BACKENDS, POOL_SIZE, Lab, warm
from infra.local.examine.traffic import Traffic

#: Sandboxes, how many of them are replaced at a time, and what Postgres has for the function where
#: it goes there by itself: room for the old ones, and not for a batch of new ones besides.
SANDBOXES, BATCH, DIRECT_LIMIT = 8, 4, 9
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
    return decided(
        not failed,
        f"through PgBouncer {failed} of {len(pooled.requests)} failed on {pooled_peak} backends"
        f" of {POOL_SIZE}{f' ({pooled.causes})' if failed else ''}; straight to a Postgres with"
        f" {DIRECT_LIMIT} connections {len(direct.failed)} of {len(direct.requests)} on"
        f" {direct_peak}",
        failed=failed,
        requests=len(pooled.requests),
        peak_backends=pooled_peak,
        failed_direct=len(direct.failed),
        requests_direct=len(direct.requests),
        peak_backends_direct=direct_peak,
    )


async def _deploy(lab: Lab, admin: Any, environment: dict[str, str]) -> tuple[Traffic, int]:
    """The traffic, new sandboxes' first requests included, and the most backends at a time."""
    fleet = lab.fleet(
        environment,
        concurrency=2 * SANDBOXES + CALLERS,
        fork_server=await lab.fork_server(),
    )
    async with fleet, _peak(admin) as peak:
        for _ in range(0, SANDBOXES, BATCH):
            await warm(lab, fleet, BATCH)
        old = list(fleet.sandboxes)
        traffic = Traffic(lab, fleet, CALLERS)
        async with traffic:
            for first in range(0, SANDBOXES, BATCH):
                await asyncio.gather(*(traffic.send_cold(each) for each in range(BATCH)))
                await asyncio.gather(*map(fleet.retire, old[first : first + BATCH]))
            await asyncio.sleep(0.5)
    return traffic, max(peak, default=0)


@contextlib.asynccontextmanager
async def _peak(admin: Any) -> AsyncIterator[list[int]]:
    """Backends of the function, ten times a second."""
    found: list[int] = []

    async def look() -> None:
        while True:
            found.append(await admin.fetchval(BACKENDS, APP))
            await asyncio.sleep(0.1)

    looking = asyncio.create_task(look())
    try:
        yield found
    finally:
        looking.cancel()
        await asyncio.wait({looking})
