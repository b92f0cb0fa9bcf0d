"""Every mutation is noticed by the test it names. This takes minutes and is not in the suite."""

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
#: `.ci/run` sets it after the suite has passed on the same code, which saves half the time.
SUITE_HAS_PASSED = "SUITE_HAS_PASSED" in os.environ


def outcome_of(test: str, folder: Path) -> tuple[int, str]:
    """Run a test in `folder` and return pytest's exit status and output."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
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
    [test] = re.findall(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    copy_of_the_code(tmp_path)
    if not SUITE_HAS_PASSED:
        status, output = outcome_of(test, tmp_path)
        assert status == 0, output
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    status, output = outcome_of(test, tmp_path)
    assert status == TESTS_FAILED, f"{test} did not fail\n{output}"
    assert re.search(r"^FAILED ", output, re.M), output  # a failure, not an error in setup
