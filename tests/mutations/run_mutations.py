"""Every mutation is noticed by the test it names. Takes minutes, so it is not part of the suite."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mutations import copy_of_the_code

PATCHES = sorted(Path(__file__).parent.glob("*.patch"))
#: Pytest's exit status when tests ran and some failed.
TESTS_FAILED = 1
#: Set when the suite has just passed on the same code, as in `.ci/run`: saves half the time.
SUITE_HAS_PASSED = "SUITE_HAS_PASSED" in os.environ


def outcome_of(test: str, folder: Path) -> tuple[int, str]:
    """Return pytest's exit status and output. Stop it when interrupted."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    with subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            output, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate(timeout=30)
            raise
    return process.returncode, output


@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_the_named_test_fails_when_the_code_is_broken(patch: Path, tmp_path: Path) -> None:
    [named] = re.findall(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    copy_of_the_code(tmp_path)
    if not SUITE_HAS_PASSED:
        code, output = outcome_of(named, tmp_path)
        assert code == 0, output
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    code, output = outcome_of(named, tmp_path)
    assert code == TESTS_FAILED, f"{named} did not fail\n{output}"
    assert re.search(r"^FAILED ", output, re.M), output  # a failure, not an error in setup
