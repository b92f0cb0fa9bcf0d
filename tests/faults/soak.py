"""`python -m tests.faults.soak [SEED [MINUTES]]`: one fault after another, in an order that nobody
chose, against one fleet, one PgBouncer and one ledger of every write.

Owns the order and what is said of it. Leaves with 1, and the name of what broke, where a promise of
the matrix is not kept. Not its shares of success: those hold for the settings of each cell, and
here those of all count together. Not among the faults: full disks, where the log of a long run
would need the room, a second PgBouncer, and what needs sandboxes that are configured for it.
"""

import argparse
import os
import random
import secrets
import sys
import tempfile
import time
import traceback
from pathlib import Path

from infra.local import LabError, network
from infra.local.interruption import run, take_sigterm_as_ctrl_c
from infra.local.stack import Stack
from tests.faults import a_while
from tests.faults.breakages import Place
from tests.faults.cells import CELLS, NAMES, PACKETS, Cell
from tests.faults.measuring import (
    assert_kept,
    connections_left,
    endure,
    furnished,
    traffic_through,
)
from tests.faults.traffic import Traffic

#: How long a fault lasts, in seconds: between these.
LASTS = (0.5, 4.0)


async def soak(seed: str, minutes: float, cells: list[Cell], stack: Stack, folder: Path) -> None:
    """Raises AssertionError, its text says what broke."""
    order, begun = random.Random(seed), time.monotonic()  # noqa: S311  # the same seed is the same order
    faults = 0
    with furnished(cells, stack, folder) as place:
        async with traffic_through(place, folder) as traffic:
            while time.monotonic() < begun + minutes * 60:
                if not faults % len(cells):
                    pack = order.sample(cells, len(cells))
                cell = pack.pop()
                print(f"{(time.monotonic() - begun) / 60:5.1f}  {cell.what:80}", end="", flush=True)
                await one(cell, place, traffic, order.uniform(*LASTS))
                faults += 1
        leaked = await connections_left(place)
    assert not leaked, f"{leaked} connections were left at the end"
    print(
        f"{faults} faults, {len(traffic.ledger)} writes: none lost or doubled, nothing left behind"
    )


async def one(cell: Cell, place: Place, traffic: Traffic, lasts: float) -> None:
    try:
        measured = await endure(cell, place, traffic, lasts)
        share = 100 * measured.answered // measured.requests
        print(f"{share:3} % of {measured.requests:<4} worst {measured.worst_s:.1f} s")
        assert_kept(cell, measured, share=False)
    except (AssertionError, TimeoutError, OSError) as error:
        dead = [each for each in (place.bouncer, place.stack.postgres) if not each.alive]
        ended = "".join(f"; {server.name} ended: {server.complaint()}" for server in dead)
        where = traceback.extract_tb(error.__traceback__)[-1]
        raise AssertionError(f"{cell.what}: {error or where.line}{ended}") from error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("SEED", nargs="?", default="", help="drawn where it is empty")
    parser.add_argument("MINUTES", nargs="?", type=a_while, default=10.0)
    arguments = parser.parse_args()
    seed, minutes = arguments.SEED or secrets.token_hex(4), arguments.MINUTES
    cells = [cell for cell in (*CELLS, *PACKETS, *NAMES) if cell.mixes]
    if not network.is_own():
        if (obstacle := network.obstacle()) is None:
            again = [sys.executable, "-m", "tests.faults.soak", seed, str(minutes)]
            inside = network.command(again)
            os.execvp(inside[0], inside)  # noqa: S606  # becomes the same command
        print(f"without lost packets and names: {obstacle}")
        cells = [cell for cell in CELLS if cell.mixes]
    take_sigterm_as_ctrl_c()
    print(f"seed {seed}, {minutes:g} minutes, {len(cells)} kinds of fault", flush=True)
    try:
        with Stack() as stack, tempfile.TemporaryDirectory(prefix="soak-") as folder:
            run(soak, seed, minutes, cells, stack, Path(folder))
    except AssertionError as broken:
        print(f"\nbroken: {broken}\nonce more: make soak SEED={seed} MINUTES={minutes:g}")
        return 1
    except LabError as error:
        print(f"warm-engine: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
