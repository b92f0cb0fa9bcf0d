"""Each mutation is noticed by the test that it names. Minutes of it, so it is not in the suite."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from infra.local.interruption import run_program
from tests.mutations import copy_of_the_code

PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
#: pytest's exit code where tests ran and some failed.
RED = 1


def named_by(patch: Path) -> str:
    [name] = re.findall(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    return str(name)


def outcome_of(folder: Path, *names: str) -> "subprocess.CompletedProcess[str]":
    words = ["-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    return run_program([sys.executable, *words], cwd=folder)


@pytest.mark.timeout(600)
def test_where_nothing_is_broken_each_named_test_passes(tmp_path: Path) -> None:
    copy_of_the_code(tmp_path)
    done = outcome_of(tmp_path, *{named_by(patch) for patch in PATCHES})
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_where_it_is_broken_the_named_test_fails(patch: Path, tmp_path: Path) -> None:
    copy_of_the_code(tmp_path)
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    done = outcome_of(tmp_path, named_by(patch))
    assert done.returncode == RED, f"{named_by(patch)} did not fail\n{done.stdout}"
