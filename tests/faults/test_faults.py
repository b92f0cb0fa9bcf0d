"""Each part is broken while it works: what callers see, how soon it is well, and that nothing is
lost, doubled or left behind."""

import asyncio
import math
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pytest

from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.fleet.nursery import Nursery
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.faults import breakages
from tests.faults.breakages import BACKENDS, Fault, Place
from tests.faults.report import PROPERTY, SECONDS, Measured
from tests.faults.traffic import CALLERS, Traffic
from tests.own_network import in_own_network

#: The function's time-out: no answer comes later.
DEADLINE = 8.0
#: How long a fault lasts: `make faults` takes its time.
LASTS = float(os.environ.get(SECONDS, "2"))


@dataclass(frozen=True)
class Cell:
    """`answered`: the share that must succeed of the requests under way meanwhile. `well`: seconds
    from the end of the fault to the first success; `why` they are more than one. `relay`: before
    whom. `at_most`: seconds after which it ends in the long form too."""

    what: str
    fault: Fault
    answered: float = 0.0
    well: float = 1.0
    why: str = ""
    relay: str = ""
    at_most: float = math.inf
    settings: dict[str, str | int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "_".join(re.findall(r"\w+", self.what.partition(" (")[0]))


TO_PGBOUNCER, TO_POSTGRES = "pgbouncer", "postgres"
RETRY = "PgBouncer asks Postgres again once a second (`server_login_retry`)"
#: Before the handler cancels what it asked: PgBouncer 1.18 ends itself ("bad client state: 0",
#: pgbouncer#801, mended since) where a client asks for a cancel and is gone before that is sent.
NO_CANCEL = 5
CELLS = [
    Cell("PgBouncer killed, and started again", breakages.pgbouncer_killed),
    Cell("PgBouncer restarted every second", breakages.pgbouncer_restarted, 0.5),
    Cell("PgBouncer paused (`PAUSE`)", breakages.pgbouncer_paused),
    Cell("PgBouncer reloaded ten times a second", breakages.pgbouncer_reloaded, 1),
    Cell(
        "PgBouncer full (`max_client_conn`)",
        breakages.pgbouncer_full,
        relay=TO_PGBOUNCER,
        settings={"max_client_conn": 12},
    ),
    Cell(
        "PgBouncer's pool held by others (`query_wait_timeout` 1)",
        breakages.pool_exhausted,
        settings={"default_pool_size": 3, "reserve_pool_size": 0, "query_wait_timeout": 1},
    ),
    Cell("PgBouncer's certificate is of another CA", breakages.certificate_of_another_ca),
    Cell(
        "a client silent in a transaction, with locks (`idle_transaction_timeout`)",
        breakages.client_silent_with_locks,
        at_most=2,  # then it is waited for until it ends by itself
    ),
    Cell(
        "Postgres shut down fast",
        breakages.postgres_restarted(signal.SIGINT),
        well=3,
        why=RETRY,
    ),
    Cell(
        "Postgres shut down at once, and recovered",
        breakages.postgres_restarted(signal.SIGQUIT),
        well=3,
        why=RETRY,
    ),
    Cell("Postgres out of slots", breakages.postgres_out_of_slots, well=3, why=RETRY),
    Cell("backends terminated in mid-query", breakages.backends_terminated, 0.9),
    Cell("network to PgBouncer 300 ms slower", breakages.delayed, 1, relay=TO_PGBOUNCER),
    Cell("network to PgBouncer stalled", breakages.stalled, relay=TO_PGBOUNCER, at_most=NO_CANCEL),
    Cell("network to PgBouncer cut", breakages.cut, relay=TO_PGBOUNCER),
    Cell("answers of PgBouncer lost", breakages.answers_lost, 0.8, relay=TO_PGBOUNCER),
    Cell("network to Postgres 300 ms slower", breakages.delayed, 1, relay=TO_POSTGRES),
    Cell("network to Postgres stalled", breakages.stalled, relay=TO_POSTGRES, at_most=NO_CANCEL),
    Cell("network to Postgres cut", breakages.cut, well=3, why=RETRY, relay=TO_POSTGRES),
    Cell("answers of Postgres lost", breakages.answers_lost, well=3, why=RETRY, relay=TO_POSTGRES),
]
PACKETS_LOST = Cell("a tenth of the packets to PgBouncer lost", breakages.packets_lost, 0.9)


@pytest.fixture(scope="module")
def breakable() -> Iterator[Stack]:
    """One for all: each fault mends what it broke."""
    with Stack() as stack:
        yield stack


async def measure(cell: Cell, stack: Stack, folder: Path) -> Measured:
    with ExitStack() as undo:
        postgres, relay = stack.postgres, None
        if cell.relay == TO_POSTGRES:
            relay = undo.enter_context(Relay(postgres.host, postgres.port))
        bouncer = undo.enter_context(
            stack.another_pgbouncer(
                settings=cell.settings, postgres_port=relay.port if relay else None
            )
        )
        environment = stack.environment(bouncer)
        if cell.relay == TO_PGBOUNCER:
            relay = undo.enter_context(Relay(bouncer.host, bouncer.port))
            environment["DB_PORT"] = str(relay.port)
        place = Place(stack, bouncer, relay)
        async with (
            Nursery() as nursery,
            Fleet(
                environment, concurrency=CALLERS, timeout=DEADLINE, logs=folder, nursery=nursery
            ) as fleet,
        ):
            async with Traffic(fleet, folder) as traffic:
                await traffic.success()
                begun = time.monotonic()
                async with cell.fault(place):
                    await asyncio.sleep(min(LASTS, cell.at_most))
                    ending = time.monotonic()
                ended = time.monotonic()
                await traffic.success()
            during = [each for each in traffic.requests if each.done > begun and each.begun < ended]
            well = min(each.done for each in traffic.requests if each.answered_after(ending))
            worst = max(each.ms for each in traffic.requests) / 1000
            sent_again = await traffic.send_again()
        leaked = await connections_left(place)
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


async def connections_left(place: Place) -> int:
    """With every sandbox gone: clients that PgBouncer still has, server connections that it counts
    as in use, and backends that it does not know of; once they had a moment."""
    admin = await place.connect_as_admin()
    for _ in range(100):
        clients = [row for row in place.bouncer.show("CLIENTS") if row["user"] == APP]
        servers = [row for row in place.bouncer.show("SERVERS") if row["user"] == APP]
        in_use = [row for row in servers if row["state"] != "idle"]
        backends = await admin.fetchval(BACKENDS, APP)
        left = len(clients) + len(in_use) + max(0, backends - len(servers))
        if not left:
            break
        await asyncio.sleep(0.05)
    await admin.close()
    return int(left)


def assert_kept(cell: Cell, measured: Measured) -> None:
    assert (measured.lost, measured.doubled, measured.leaked) == (0, 0, 0), measured
    assert measured.worst_s <= DEADLINE, measured
    assert measured.well_s <= cell.well, measured
    assert measured.requests >= CALLERS, measured
    assert measured.answered >= cell.answered * measured.requests, measured


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.name)
async def test_nothing_is_lost_and_it_is_well_at_once(
    cell: Cell, breakable: Stack, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    measured = await measure(cell, breakable, tmp_path)
    record_property(PROPERTY, asdict(measured))
    assert_kept(cell, measured)


@in_own_network
async def test_nothing_is_lost_where_packets_are(
    breakable: Stack, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    measured = await measure(PACKETS_LOST, breakable, tmp_path)
    record_property(PROPERTY, asdict(measured))
    assert_kept(PACKETS_LOST, measured)
