"""Mutation tests: each `*.patch` breaks the code and names the test that must fail.

A mutation that no longer applies, goes unnoticed or causes an error instead of a failure is an
error.
"""

import shutil
from pathlib import Path

from infra.local import ROOT


def copy_of_the_code(folder: Path) -> None:
    for name in ("docs", "handler", "infra", "pgbouncer", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / ".tools").exists():
        (folder / ".tools").symlink_to(ROOT / ".tools")
