"""Each part is broken while it works: what callers see, how soon it is well, and that nothing is
lost, doubled or left behind."""

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.local.stack import Stack
from tests.faults.cells import CELLS, DISKS, NAMES, PACKETS, Cell
from tests.faults.measuring import assert_kept, measure
from tests.faults.report import PROPERTY, SECONDS
from tests.own_network import in_own_network

#: How long a fault lasts: `make faults` takes its time.
LASTS = float(os.environ.get(SECONDS, "2"))
Record = Callable[[str, object], None]


@pytest.fixture(scope="module")
def breakable() -> Iterator[Stack]:
    """One for all: each fault mends what it broke."""
    with Stack() as stack:
        yield stack


async def check(cell: Cell, stack: Stack, folder: Path, record_property: Record) -> None:
    measured = await measure(cell, stack, folder, LASTS)
    record_property(PROPERTY, asdict(measured))
    assert_kept(cell, measured)


@pytest.mark.parametrize("cell", CELLS, ids=lambda cell: cell.id)
async def test_nothing_is_lost_and_it_is_well_at_once(
    cell: Cell, breakable: Stack, tmp_path: Path, record_property: Record
) -> None:
    await check(cell, breakable, tmp_path, record_property)


@in_own_network
@pytest.mark.parametrize("cell", PACKETS, ids=lambda cell: cell.id)
async def test_nor_where_packets_are_lost(
    cell: Cell, breakable: Stack, tmp_path: Path, record_property: Record
) -> None:
    await check(cell, breakable, tmp_path, record_property)


@in_own_network
@pytest.mark.parametrize("cell", NAMES, ids=lambda cell: cell.id)
async def test_nor_where_a_server_is_found_by_its_name(
    cell: Cell, breakable: Stack, tmp_path: Path, record_property: Record
) -> None:
    await check(cell, breakable, tmp_path, record_property)


@in_own_network
@pytest.mark.parametrize("cell", DISKS, ids=lambda cell: cell.id)
async def test_nor_where_the_disk_is_full(
    cell: Cell, breakable: Stack, tmp_path: Path, record_property: Record
) -> None:
    await check(cell, breakable, tmp_path, record_property)
