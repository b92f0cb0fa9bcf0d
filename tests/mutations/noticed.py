"""Each mutation is noticed by the test that it names. Minutes of it, so it is not in the suite."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations import copy_of_the_code

PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
#: pytest's exit code where tests ran and some failed.
RED = 1


def named_by(patch: Path) -> str:
    [name] = re.findall(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    return str(name)


def outcome_of(folder: Path, *names: str) -> tuple[int, str]:
    """pytest's exit code, and what it said. Interrupted it ends what it started."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *names]
    with subprocess.Popen(words, cwd=folder, stdout=subprocess.PIPE, text=True) as process:
        try:
            said, _ = process.communicate()
        finally:
            process.terminate()  # if it has not ended by itself
    return process.returncode, said


@pytest.mark.timeout(600)
def test_where_nothing_is_broken_each_named_test_passes(tmp_path: Path) -> None:
    copy_of_the_code(tmp_path)
    code, said = outcome_of(tmp_path, *{named_by(patch) for patch in PATCHES})
    assert code == 0, said


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_where_it_is_broken_the_named_test_fails(patch: Path, tmp_path: Path) -> None:
    copy_of_the_code(tmp_path)
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    code, said = outcome_of(tmp_path, named_by(patch))
    assert code == RED, f"{named_by(patch)} did not fail\n{said}"
