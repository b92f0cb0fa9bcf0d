"""`python -m tests.mutations [NAME …]`: all of them, or those named."""

import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from infra.local import ROOT
from infra.local.interruption import take_sigterm_as_ctrl_c

PATCHES = Path(__file__).parent
#: pytest's exit code where tests ran and some failed.
RED = 1


def copy_of_the_code(folder: Path) -> None:
    for name in ("handler", "infra", "pgbouncer", "tests"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", folder)
    if (ROOT / ".tools").exists():
        (folder / ".tools").symlink_to(ROOT / ".tools")


def fault_of(patch: Path) -> str | None:
    """What is wrong with `patch`: None if the test that it names fails under it."""
    said = re.search(r"^Noticed by: (\S+)$", patch.read_text(), re.M)
    if said is None:
        return "names no test"
    with tempfile.TemporaryDirectory(prefix="warm-engine-mutation-") as scratch:
        folder = Path(scratch)
        copy_of_the_code(folder)
        apply = ["git", "apply", str(patch)]
        applied = subprocess.run(apply, cwd=folder, capture_output=True, text=True)
        if applied.returncode:
            return f"does not apply: {applied.stderr.splitlines()[0]}"
        test = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", said[1]],
            cwd=folder,
            capture_output=True,
            text=True,
        )
    if test.returncode == RED and re.search(r"^FAILED ", test.stdout, re.M):
        return None
    if skipped := re.search(r"^SKIPPED .*$", test.stdout, re.M):
        return f"not tried: {skipped[0]}"
    return f"{said[1]} did not fail:\n{test.stdout[-2000:]}{test.stderr[-2000:]}"


def main() -> int:
    take_sigterm_as_ctrl_c()
    patches = [PATCHES / f"{name}.patch" for name in sys.argv[1:]] or sorted(
        PATCHES.glob("*.patch")
    )
    unnoticed = 0
    for number, patch in enumerate(patches, 1):
        print(f"[{number}/{len(patches)}] {patch.stem:32}", end="", flush=True)
        begun = time.monotonic()
        fault = fault_of(patch)
        unnoticed += fault is not None
        print(fault or f"noticed, {time.monotonic() - begun:.1f} s", flush=True)
    return 1 if unnoticed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
