"""A sandbox that Lambda freezes between two events: what it holds, and whether it recovers."""

import asyncio
from functools import partial

from infra.database.roles import APP
from infra.local.examine import responses
from infra.local.examine.finding import Finding, UnknownError, Verdict, conclude
from infra.local.examine.lab import (
    BACKENDS,
    Lab,
    becomes_true,
    has_no_backends,
    once_per_lab,
    wait_until_frozen,
)
from infra.local.network import Filter

SANDBOXES = 3
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"


async def frozen(lab: Lab) -> Finding:
    fleet = await lab.forked_fleet(lab.direct(), concurrency=SANDBOXES)
    async with fleet, lab.admin() as admin:
        await lab.warm_up(fleet, SANDBOXES)
        await wait_until_frozen(fleet)
        direct = await admin.fetchval(BACKENDS, APP)
    pooled = await held_while_frozen(lab)
    return conclude(
        not pooled,
        f"{SANDBOXES} frozen sandboxes hold {pooled} server connections behind PgBouncer,"
        f" {direct} directly to Postgres",
        sandboxes=SANDBOXES,
        held_behind_pgbouncer=pooled,
        held_direct=direct,
    )


@once_per_lab
async def held_while_frozen(lab: Lab) -> int:
    """Return how many of PgBouncer's server connections are linked to frozen sandboxes."""
    with lab.bouncer() as bouncer:
        fleet = await lab.forked_fleet(lab.pooled(bouncer), concurrency=SANDBOXES)
        async with fleet:
            await lab.warm_up(fleet, SANDBOXES)
            await wait_until_frozen(fleet)
            await asyncio.sleep(0.2)  # PgBouncer resets a server connection before it is free
            servers = bouncer.show("SERVERS")
            return sum(row["user"] == APP and row["state"] == "active" for row in servers)


async def thaw(lab: Lab) -> Finding:
    """Close the connections of a frozen sandbox: with a FIN that its kernel accepts, and with all
    packets lost, as in a paused micro-VM."""
    error_after_fin = await _error_after_thaw(lab, None)
    if lab.no_filter:
        finding = conclude(error_after_fin is None, _outcome("FIN received", error_after_fin))
        if finding.verdict is Verdict.NO:
            return finding
        raise UnknownError(
            f"correct after the server's FIN; packets cannot be dropped here: {lab.no_filter}"
        )
    error_after_loss = await _error_after_thaw(lab, Filter())
    return conclude(
        error_after_fin is None and error_after_loss is None,
        f"{_outcome('FIN received', error_after_fin)};"
        f" {_outcome('packets lost', error_after_loss)}",
        closed_politely=error_after_fin is None,
        packets_lost=error_after_loss is None,
    )


def _outcome(condition: str, error: str | None) -> str:
    return f"{condition}: {'correct' if error is None else error}"


async def _error_after_thaw(lab: Lab, packet_filter: Filter | None) -> str | None:
    """Return the first wrong response after two freezes in which connections were closed."""
    async with lab.fleet(lab.direct(), packet_filter=packet_filter) as fleet:
        await lab.warm_up(fleet, 1)
        for number in range(2):
            await wait_until_frozen(fleet)
            async with lab.admin() as admin:
                await admin.fetch(TERMINATE, APP)
                if not await becomes_true(partial(has_no_backends, admin), 5):
                    raise UnknownError("its connections could not be closed")
            result = await fleet.invoke(lab.event(number))
            if not lab.is_correct(number, result):
                return responses.describe(result)
    return None
