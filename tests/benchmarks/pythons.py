"""The other Pythons on this machine, each with the packages of the Lambda image."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from infra.local import ROOT, LabError
from infra.local.signals import run_program

VERSIONS = ("3.11", "3.12", "3.13", "3.14")


@dataclass(frozen=True)
class Python:
    """An interpreter. `packages`: a folder for `PYTHONPATH`, if it has none of its own."""

    path: str
    packages: Path | None = None

    def environment(self) -> dict[str, str]:
        return {"PYTHONPATH": str(self.packages)} if self.packages else {}


THIS_PYTHON = Python(sys.executable)


def others() -> Iterator[tuple[str, str]]:
    """Version and path of each Python on the PATH or of pyenv, except the running version."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    for version in VERSIONS:
        if version == f"{sys.version_info.major}.{sys.version_info.minor}":
            continue
        name = f"python{version}"
        paths = [shutil.which(name), *map(str, pyenv.glob(f"{version}.*/bin/{name}"))]
        # A shim of a version manager may be on the PATH and lead nowhere.
        if path := next(filter(_runs, filter(None, paths)), None):
            yield version, path


def _runs(path: str) -> bool:
    return subprocess.run([path, "-c", ""], capture_output=True).returncode == 0


def installed(scratch: Path, report_progress: Callable[[str], None]) -> dict[str, Python]:
    """Install the image's packages for each of them. Raises LabError if one cannot be installed."""
    pythons = {}
    for version, path in others():
        report_progress(f"Python {version}: packages")
        packages = scratch / version
        uv = Path(sys.executable).with_name("uv")
        into = ["--target", str(packages), "--python", path]
        pinned = ROOT / "handler/requirements.txt"
        done = run_program([uv, "pip", "install", "--quiet", *into, "-r", pinned])
        if done.returncode:
            raise LabError(f"Python {version}: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        pythons[version] = Python(path, packages)
    return pythons
