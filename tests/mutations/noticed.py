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


def outcome_of(test: str, folder: Path) -> tuple[int, str]:
    """pytest's exit code, and what it said. Interrupted it ends what it started."""
    words = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", test]
    with subprocess.Popen(
        words, cwd=folder, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            said, _ = process.communicate()
        except BaseException:
            process.terminate()
            process.communicate(timeout=30)
            raise
    return process.returncode, said


@pytest.mark.timeout(300)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_the_named_test_passes_and_fails_where_the_code_is_broken(
    patch: Path, tmp_path: Path
) -> None:
    [named] = re.findall(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    copy_of_the_code(tmp_path)
    code, said = outcome_of(named, tmp_path)
    assert code == 0, said
    subprocess.run(["git", "apply", patch], cwd=tmp_path, check=True)
    code, said = outcome_of(named, tmp_path)
    assert code == RED, f"{named} did not fail\n{said}"
    assert re.search(r"^FAILED ", said, re.M), said  # not an error on the way to it
