"""The committed report is of this matrix, and the README shows it."""

from infra.local import ROOT
from tests.faults import report
from tests.faults.cells import APART, CELLS
from tests.unit.test_readme import committed

MEASURED = report.read(committed("reports/faults.json"))


def test_each_fault_has_its_row() -> None:
    assert [row.what for row in MEASURED] == [cell.what for cell in (*CELLS, *APART)]


def test_nothing_was_lost_doubled_or_leaked() -> None:
    assert not any(row.lost or row.doubled or row.leaked for row in MEASURED)


def test_the_readme_has_the_table_of_the_report() -> None:
    table = report.table(MEASURED)
    assert table in (ROOT / "README.md").read_text()
    assert committed("reports/faults.md").endswith(table)
