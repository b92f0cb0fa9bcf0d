"""`make mutations`: breaks the code one way at a time and looks whether the named test turns red.

Each `*.patch` begins with what it breaks and the test that must notice. A mutation that goes
unnoticed, does not apply any more or breaks its test in another way than failing it is an error.
"""

import shutil
from pathlib import Path

from infra.local import ROOT


def copy_of_the_code(folder: Path) -> None:
    for name in ("handler", "infra", "pgbouncer", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / ".tools").exists():
        (folder / ".tools").symlink_to(ROOT / ".tools")
