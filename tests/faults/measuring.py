"""One cell of the matrix, measured: traffic, a fault in its midst, and the reckoning.

Owns what must be there for a cell, and when what is counted. Leaves the faults to `breakages`.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.fleet.nursery import Nursery
from infra.local.server import account
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.faults.breakages import BACKENDS, TO_PGBOUNCER, TO_POSTGRES, Place
from tests.faults.breakages.disk import small_disk
from tests.faults.cells import Cell
from tests.faults.names import NAME, Names
from tests.faults.report import Measured
from tests.faults.traffic import CALLERS, Traffic
from tests.faults.vault import Vault

#: The function's time-out: no answer comes later.
DEADLINE = 8.0


@contextlib.contextmanager
def furnished(cells: Sequence[Cell], stack: Stack, folder: Path) -> Iterator[Place]:
    """All that these cells need, together."""
    with contextlib.ExitStack() as undo:
        settings = {name: value for cell in cells for name, value in cell.settings.items()}
        postgres, relays = stack.postgres, {}
        disk = undo.enter_context(small_disk(stack)) if any(each.disk for each in cells) else None
        names = undo.enter_context(Names()) if any(each.name for each in cells) else None
        if names:
            said = f"nameserver {names.host}\n"
            settings["resolv_conf"] = str(account().write(stack.folder / "resolv.conf", said))
        if any(cell.relay == TO_POSTGRES for cell in cells):
            relays[TO_POSTGRES] = undo.enter_context(Relay(postgres.host, postgres.port))
        bouncer = undo.enter_context(
            stack.another_pgbouncer(
                settings=settings,
                postgres_host=NAME if names else None,
                postgres_port=relays[TO_POSTGRES].port if relays else None,
            )
        )
        environment = stack.environment(bouncer)
        if any(cell.relay == TO_PGBOUNCER for cell in cells):
            relay = relays[TO_PGBOUNCER] = undo.enter_context(Relay(bouncer.host, bouncer.port))
            environment["DB_PORT"] = str(relay.port)
        place = Place(stack, bouncer, environment, relays, undo=undo)
        if any(cell.vault for cell in cells):
            password = environment.pop("DB_PASS")
            place.vault = undo.enter_context(Vault(folder.name, password))
            environment |= place.vault.environment
        if names:
            place.names = names
        if disk:
            place.disk = disk
        yield place


@contextlib.asynccontextmanager
async def traffic_through(place: Place, folder: Path) -> AsyncIterator[Traffic]:
    async with (
        Nursery() as nursery,
        Fleet(
            place.environment,
            concurrency=2 * CALLERS,  # some are replaced
            timeout=DEADLINE,
            logs=folder,
            nursery=nursery,
        ) as place.fleet,
    ):
        yield Traffic(place.fleet, folder)


async def measure(cell: Cell, stack: Stack, folder: Path, lasts: float) -> Measured:
    with furnished([cell], stack, folder) as place:
        async with traffic_through(place, folder) as traffic:
            measured = await endure(cell, place, traffic, lasts)
        return replace(measured, leaked=measured.leaked + await connections_left(place))


async def endure(cell: Cell, place: Place, traffic: Traffic, lasts: float) -> Measured:
    """Traffic before, during and after the fault; then its reckoning, with the sandboxes alive."""
    place.at = cell.relay
    async with traffic:
        await traffic.success()
        begun = time.monotonic()
        async with cell.fault(place):
            await asyncio.sleep(min(lasts, cell.at_most))
            ending = time.monotonic()
        ended = time.monotonic()
        await traffic.success()
    during = [each for each in traffic.requests if each.done > begun and each.begun < ended]
    well = min(each.done for each in traffic.requests if each.answered_after(ending))
    worst = max(each.ms for each in traffic.requests) / 1000
    sent_again = await traffic.send_again()
    leaked = await connections_left(place, known=len(place.fleet.sandboxes))
    admin = await place.connect_as_admin()
    lost, doubled = await traffic.reckon(admin)
    await admin.close()
    return Measured(
        what=cell.what,
        requests=len(during),
        answered=sum(each.answered for each in during),
        worst_s=round(worst, 3),
        well_s=round(max(0, well - ended), 3),
        why=cell.why,
        keys=len(traffic.ledger),
        sent_again=sent_again,
        leaked=leaked,
        lost=lost,
        doubled=doubled,
    )


async def connections_left(place: Place, known: int = 0) -> int:
    """With no request under way: clients that PgBouncer has beyond `known` ones, server connections
    that it counts as in use, and backends that it does not know of; once they had a moment."""
    admin = await place.connect_as_admin()
    for _ in range(100):
        clients = [row for row in place.bouncer.show("CLIENTS") if row["user"] == APP]
        servers = [row for row in place.bouncer.show("SERVERS") if row["user"] == APP]
        in_use = [row for row in servers if row["state"] != "idle"]
        backends = await admin.fetchval(BACKENDS, APP)
        left = max(0, len(clients) - known) + len(in_use) + max(0, backends - len(servers))
        if not left:
            break
        await asyncio.sleep(0.05)
    await admin.close()
    return int(left)


def assert_kept(cell: Cell, measured: Measured, *, share: bool = True) -> None:
    """`share`: whether as many were answered as the cell promises, too."""
    assert (measured.lost, measured.doubled, measured.leaked) == (0, 0, 0), measured
    assert measured.worst_s <= DEADLINE, measured
    assert measured.well_s <= cell.well, measured
    assert measured.requests >= (CALLERS if share else 1), measured
    assert not share or measured.answered >= cell.answered * measured.requests, measured
