"""A sandbox that Lambda freezes between two events: what it holds, and whether it recovers."""

import asyncio
from typing import Any
from weakref import WeakKeyDictionary

from infra.database.roles import APP
from infra.local.examine import answers
from infra.local.examine.finding import Finding, UnknownError, Verdict, decided
from infra.local.examine.lab import BACKENDS, TERMINATE, Lab, frozen, is_true_within, warm
from infra.local.fleet import Fleet
from infra.local.network import Filter

SANDBOXES = 3


async def frozen_holds(lab: Lab) -> Finding:
    forked = await lab.fork_server()
    fleet = lab.fleet(lab.direct(), concurrency=SANDBOXES, fork_server=forked)
    async with fleet, lab.admin() as admin:
        await _freeze_all(lab, fleet)
        direct = await admin.fetchval(BACKENDS, APP)
    held = await held_while_frozen(lab)
    return decided(
        not held,
        f"{SANDBOXES} frozen sandboxes hold {held} server connections behind PgBouncer,"
        f" {direct} straight to Postgres",
        sandboxes=SANDBOXES,
        held_behind_pgbouncer=held,
        held_direct=direct,
    )


_held: WeakKeyDictionary[Lab, int] = WeakKeyDictionary()


async def held_while_frozen(lab: Lab) -> int:
    """PgBouncer's server connections that are linked to a frozen sandbox. Measured once."""
    if lab not in _held:
        with lab.bouncer() as bouncer:
            fleet = lab.fleet(
                lab.pooled(bouncer), concurrency=SANDBOXES, fork_server=await lab.fork_server()
            )
            async with fleet:
                await _freeze_all(lab, fleet)
                await asyncio.sleep(0.2)  # a server connection is free once it was reset
                rows = bouncer.show("SERVERS")
                _held[lab] = sum(row["user"] == APP and row["state"] == "active" for row in rows)
    return _held[lab]


async def _freeze_all(lab: Lab, fleet: Fleet) -> None:
    await warm(lab, fleet, SANDBOXES)
    await frozen(fleet)


async def thaw(lab: Lab) -> Finding:
    """The server closed the connections meanwhile: with a FIN that the sandbox's kernel took, and
    with every packet lost, as in a micro-VM that stands still."""
    polite = await _after_a_freeze(lab, None)
    if lab.no_filter:
        finding = decided(polite is None, _words("closed politely", polite))
        if finding.verdict is Verdict.NO:
            return finding
        raise UnknownError(
            f"right where the server's FIN arrives; no packets can be dropped here: {lab.no_filter}"
        )
    lost = await _after_a_freeze(lab, Filter())
    return decided(
        polite is None and lost is None,
        f"{_words('closed politely', polite)}; {_words('packets lost', lost)}",
        closed_politely=polite is None,
        packets_lost=lost is None,
    )


def _words(how: str, failure: str | None) -> str:
    return f"{how}: {'right' if failure is None else failure}"


async def _are_gone(admin: Any) -> bool:
    return not await admin.fetchval(BACKENDS, APP)


async def _after_a_freeze(lab: Lab, packet_filter: Filter | None) -> str | None:
    """What the first request after the freeze was answered, if not rightly."""
    async with lab.fleet(lab.direct(), packet_filter=packet_filter) as fleet:
        for number in range(2):
            if number == 0:
                await warm(lab, fleet, 1)
            await frozen(fleet)
            async with lab.admin() as admin:
                await admin.fetch(TERMINATE, APP)
                if not await is_true_within(5, lambda: _are_gone(admin)):
                    raise UnknownError("its connections could not be closed")
            answer = await fleet.invoke(lab.event(number))
            if not lab.is_right(number, answer):
                return answers.described(answer)
    return None
