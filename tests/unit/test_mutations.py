"""What `make mutations` tries fits the code that there is: it takes minutes, this does not."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from infra.local import ROOT

PATCHES = sorted((ROOT / "tests" / "mutations").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_a_mutation_fits_the_code_and_names_a_test(patch: Path) -> None:
    check = ["git", "apply", "--check", str(patch)]
    applied = subprocess.run(check, cwd=ROOT, capture_output=True, text=True)
    assert applied.returncode == 0, applied.stderr
    said = re.search(r"^Noticed by: ([^:\n]+)::(\w+)", patch.read_text(), re.M)
    assert said
    tests = ast.walk(ast.parse((ROOT / said[1]).read_text()))
    assert said[2] in {node.name for node in tests if hasattr(node, "name")}
