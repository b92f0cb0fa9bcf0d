"""Every mutation still applies. `make mutations` takes minutes; this check is fast."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from infra.local import ROOT

PATCHES = sorted((ROOT / "tests" / "mutations").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_every_mutation_applies_and_names_an_existing_test(patch: Path) -> None:
    check = ["git", "apply", "--check", str(patch)]
    result = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    noticed_by = re.search(r"^Noticed by: ([^:\n]+)::(\w+)", patch.read_text(), re.M)
    assert noticed_by
    tests = ast.walk(ast.parse((ROOT / noticed_by[1]).read_text()))
    assert noticed_by[2] in {node.name for node in tests if hasattr(node, "name")}
