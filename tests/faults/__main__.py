"""`python -m tests.faults [SECONDS]`: the matrix with faults that last so long, and its report.

In a network of its own where that can be had: lost packets, names and full disks need it, and are
not in the report otherwise.
"""

import argparse
import os
import sys

import pytest

from infra.local import ROOT, network
from infra.local.interruption import take_sigterm_as_ctrl_c
from tests.faults import a_while
from tests.faults.report import PROPERTY, SECONDS, Measured, table, write


class Gathering:
    """A plugin of pytest: what each test measured, in whichever process it ran."""

    def __init__(self) -> None:
        self.cells: dict[str, Measured] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "call" and isinstance(value, dict):
                self.cells[value["what"]] = Measured(**value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("SECONDS", nargs="?", type=a_while, default=10.0)
    seconds = parser.parse_args().SECONDS
    if not network.is_own():
        if (obstacle := network.obstacle()) is None:
            inside = network.command([sys.executable, "-m", "tests.faults", *sys.argv[1:]])
            os.execvp(inside[0], inside)  # noqa: S606  # becomes the same command
        print(f"without lost packets, names and full disks: {obstacle}")
    take_sigterm_as_ctrl_c()
    os.environ[SECONDS] = str(seconds)
    gathering = Gathering()
    status = pytest.main(["tests/faults/test_faults.py", "-q", "-n2"], plugins=[gathering])
    from tests.faults.cells import APART, CELLS  # after pytest, which rewrites what it imports

    order = [cell.what for cell in (*CELLS, *APART)]
    cells = [gathering.cells[what] for what in order if what in gathering.cells]
    if status == pytest.ExitCode.OK:
        write(ROOT / "reports", seconds, cells)
    print(table(cells))
    return int(status)


if __name__ == "__main__":
    sys.exit(main())
