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
from infra.local.pgbouncer import PgBouncer
from infra.local.server import account
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.faults.breakages import BACKENDS, TO_PGBOUNCER, TO_POSTGRES, Place
from tests.faults.breakages.disk import small_disk
from tests.faults.cells import Cell
from tests.faults.names import NAME, Names, resolving_by
from tests.faults.report import Measured
from tests.faults.traffic import CALLERS, Traffic
from tests.faults.vault import Vault

#: How long what callers leave behind may take to go, in seconds: less than a server bears with a
#: query or a transaction that nobody waits for.
GRACE = 1.0


@contextlib.contextmanager
def furnished(cells: Sequence[Cell], stack: Stack, folder: Path) -> Iterator[Place]:
    """All that these cells need, together."""
    with contextlib.ExitStack() as undo:
        settings = {name: value for cell in cells for name, value in cell.settings.items()}
        postgres, relays = stack.postgres, {}
        disk = undo.enter_context(small_disk(stack)) if any(each.disk for each in cells) else None
        names = undo.enter_context(Names()) if any(each.name for each in cells) else None
        named = {cell.name for cell in cells}
        if names:
            said = f"nameserver {names.host}\n"
            resolv_conf = account().write(stack.folder / "resolv.conf", said)
        if TO_POSTGRES in named:
            settings["resolv_conf"] = str(resolv_conf)
        if TO_PGBOUNCER in named:
            undo.enter_context(resolving_by(resolv_conf))
        if any(cell.relay == TO_POSTGRES for cell in cells):
            relays[TO_POSTGRES] = undo.enter_context(Relay(postgres.host, postgres.port))

        def another_pgbouncer() -> PgBouncer:
            return undo.enter_context(
                stack.another_pgbouncer(
                    settings=settings,
                    postgres_host=NAME if TO_POSTGRES in named else None,
                    postgres_port=relays[TO_POSTGRES].port if TO_POSTGRES in relays else None,
                )
            )

        bouncer, another = another_pgbouncer(), None
        if any(cell.balanced for cell in cells):
            another = another_pgbouncer()
        environment = stack.environment(bouncer)
        for cell in cells:
            environment |= cell.environment
        if TO_PGBOUNCER in named:
            environment["DB_HOST"] = NAME
        if any(cell.relay == TO_PGBOUNCER for cell in cells):
            others = [(another.host, another.port)] if another else []
            relay = Relay(bouncer.host, bouncer.port, *others)
            relays[TO_PGBOUNCER] = undo.enter_context(relay)
            environment["DB_PORT"] = str(relay.port)
        place = Place(stack, bouncer, environment, relays, undo=undo, another=another)
        if another:
            trusted = "".join(each.ca.read_text() for each in place.bouncers if each.ca)
            trusting = account().write(stack.folder / "both.pem", trusted)
            environment["DB_SSLROOTCERT"] = str(trusting)
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
async def traffic_through(
    place: Place, folder: Path, deadline: float = Cell.deadline
) -> AsyncIterator[Traffic]:
    async with (
        Nursery() as nursery,
        Fleet(
            place.environment,
            concurrency=2 * CALLERS,  # some are replaced
            timeout=deadline,
            logs=folder,
            nursery=nursery,
        ) as place.fleet,
    ):
        yield Traffic(place.fleet, folder)


async def measure(cell: Cell, stack: Stack, folder: Path, lasts: float) -> Measured:
    with furnished([cell], stack, folder) as place:
        async with traffic_through(place, folder, cell.deadline) as traffic:
            measured = await endure(cell, place, traffic, lasts)
        return replace(
            measured,
            leaked=measured.leaked + await connections_left(place),
            tried_again=traffic.tried_again(),
        )


async def endure(cell: Cell, place: Place, traffic: Traffic, lasts: float) -> Measured:
    """Traffic before, during and after the fault; then its reckoning, with the sandboxes alive."""
    place.at = cell.relay
    async with traffic:
        await traffic.success()
        begun = time.monotonic()
        async with cell.fault(place):
            broken = time.monotonic()
            await asyncio.sleep(max(cell.at_least, min(lasts, cell.at_most)))
            ending = time.monotonic()
        ended = time.monotonic()
        await traffic.success()
    during = [each for each in traffic.requests if each.done > begun and each.begun < ended]
    within = [each for each in during if each.begun > broken and each.done < ending]
    well = min(each.done for each in traffic.requests if each.answered_after(ending))
    worst = max(each.ms for each in traffic.requests) / 1000
    sent_again = await traffic.send_again()
    await traffic.reach_every_sandbox()
    leaked = await connections_left(place)
    async with place.admin() as admin:
        lost, doubled = await traffic.reckon(admin)
    return Measured(
        what=cell.what,
        requests=len(during),
        answered=sum(each.answered for each in during),
        within=len(within),
        answered_within=sum(each.answered for each in within),
        late=sum(each.status == 504 for each in during),
        worst_s=round(worst, 3),
        well_s=round(max(0, well - ended), 3),
        why=cell.why,
        keys=len(traffic.ledger),
        sent_again=sent_again,
        leaked=leaked,
        lost=lost,
        doubled=doubled,
    )


async def connections_left(place: Place) -> int:
    """With no request under way: sandboxes that have more than one connection or none, clients that
    PgBouncer has beyond those, server connections that it counts as in use, and backends that it
    does not know of; once they had a moment."""
    sandboxes, port = place.fleet.sandboxes, int(place.environment["DB_PORT"])
    end = time.monotonic() + GRACE
    async with place.admin() as admin:
        while True:
            last = time.monotonic() > end
            sockets = [sum(to == port for _, to in each.connections()) for each in sandboxes]
            clients, servers = (
                [row for each in place.bouncers for row in each.show(what) if row["user"] == APP]
                for what in ("CLIENTS", "SERVERS")
            )
            in_use = [row for row in servers if row["state"] != "idle"]
            backends = await admin.fetchval(BACKENDS, APP)
            left = [
                sum(abs(number - 1) for number in sockets),
                len(clients) - len(sandboxes),
                len(in_use),
                backends - len(servers),
            ]
            if last or not any(each > 0 for each in left):
                return sum(max(0, each) for each in left)
            await asyncio.sleep(0.05)


def assert_kept(cell: Cell, measured: Measured, *, share: bool = True) -> None:
    """`share`: whether as many were answered as the cell promises, too, and how."""
    assert (measured.lost, measured.doubled, measured.leaked) == (0, 0, 0), measured
    assert not cell.total or not measured.answered_within, measured
    assert measured.well_s <= cell.well, measured
    assert measured.requests >= (CALLERS if share else 1), measured
    if share:
        assert measured.worst_s <= cell.deadline, measured
        assert measured.answered >= cell.answered * measured.requests, measured
        assert measured.late or not cell.late, measured
        assert measured.within or not cell.told, measured
        assert not cell.once or not measured.tried_again, measured
    assert measured.worst_s <= Cell.deadline, measured
