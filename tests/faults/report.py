"""What a cell of the matrix measured, and the report made of all of them.

Owns the figures' names, `reports/faults.json` and the table of it. Leaves the measuring to
`test_faults`, and gathering it from the tests to `__main__`.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: In the environment of the tests: how many seconds each fault lasts.
SECONDS = "WARM_ENGINE_FAULT_SECONDS"
#: The name of the property under which a test hands over what it measured.
PROPERTY = "fault"
HEAD = """\
| what is broken | answered | worst | well after | leaked | lost | doubled |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Measured:
    """`requests`: under way while it was broken; `answered`: how many of them with success;
    `within`: those that neither began before it nor ended after; `late`: those with 504.
    `worst_s`: the longest wait for an answer of any kind. `well_s`: from the fault's end to the
    first success, and `why` that may be more than a second. `leaked`: connections that nobody uses
    or knows of; `lost` and `doubled`: rows of `keys`, once those without an answer were sent again.
    `tried_again`: how many requests took the handler two attempts, before and after it too.
    """

    what: str
    requests: int
    answered: int
    within: int
    answered_within: int
    late: int
    worst_s: float
    well_s: float
    why: str
    keys: int
    sent_again: int
    leaked: int
    lost: int
    doubled: int
    tried_again: int = 0

    @property
    def row(self) -> str:
        share = f"{int(100 * self.answered / self.requests)} % of {self.requests}"
        figures = f"{self.leaked} | {self.lost} | {self.doubled}"
        return f"| {self.what} | {share} | {self.worst_s:.1f} s | {self.well_s:.1f} s | {figures} |"


def table(cells: list[Measured]) -> str:
    reasons = sorted({f"{cell.what}: {cell.why}." for cell in cells if cell.well_s > 1})
    rows = HEAD + "".join(f"{cell.row}\n" for cell in cells)
    return rows + "".join(f"\n{reason}\n" for reason in reasons)


def write(folder: Path, seconds: float, cells: list[Measured]) -> None:
    content = {"seconds": seconds, "cells": [asdict(cell) for cell in cells]}
    (folder / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "faults.md").write_text(
        f"# Faults\n\nEach lasted {seconds:g} s, some less (`at_most` in `tests/faults/cells.py`). "
        f"Made by `make faults`.\n\n{table(cells)}"
    )


def read(text: str) -> list[Measured]:
    return [Measured(**cell) for cell in json.loads(text)["cells"]]
