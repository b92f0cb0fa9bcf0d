"""What this machine has, and how to get from Debian what it lacks without changing the system.

Standard library only: it also runs before anything is installed.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from infra.local import ROOT, LabError
from infra.local.interruption import run_program

TOOLS = ROOT / ".tools"
OLDEST_PGBOUNCER = (1, 18)


@dataclass(frozen=True)
class PgBouncerProgram:
    path: Path
    #: Where its private shared libraries are; None for one that the system installed.
    libraries: Path | None
    version: tuple[int, ...]

    def environment(self) -> dict[str, str]:
        return {} if self.libraries is None else {"LD_LIBRARY_PATH": str(self.libraries)}


def pgbouncer() -> PgBouncerProgram | None:
    """The PgBouncer to run: `$PGBOUNCER`, the system's, or the one fetched into `.tools`.

    Raises LabError when it does not run or is too old.
    """
    fetched = TOOLS / "pgbouncer/usr/sbin/pgbouncer"
    named = os.environ.get("PGBOUNCER")
    system = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    path = Path(named or system or fetched)
    if not named and not path.exists():
        return None
    libraries = (
        next((TOOLS / "pgbouncer/usr/lib").glob("*-linux-*"), None) if path == fetched else None
    )
    program = PgBouncerProgram(path, libraries, ())
    try:
        said = subprocess.run(
            [path, "--version"],
            env={**os.environ, **program.environment()},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        version = tuple(map(int, re.findall(r"\d+", re.findall(r"PgBouncer ([\d.]+)", said)[0])))
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        why = getattr(error, "strerror", None) or "it does not say its version"
        raise LabError(f"{path} is not a PgBouncer that runs here: {why}. {remedy()}") from None
    if version < OLDEST_PGBOUNCER:
        raise LabError(
            f"{path} is PgBouncer {'.'.join(map(str, version))}, which is too old: "
            f"1.18 or later is needed. {remedy()}"
        )
    return PgBouncerProgram(path, libraries, version)


def fetch_pgbouncer() -> None:
    """Put a PgBouncer into `.tools`. Raises LabError, with what to install, where it cannot.

    The same way for root as for anyone: `apt-get install` would also start a system service on
    port 6432 and leave it running.
    """
    if not can_fetch():
        raise LabError(f"PgBouncer is not installed. {remedy()}")
    fetch_debian("pgbouncer", TOOLS / "pgbouncer")


def can_fetch() -> bool:
    return all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-query")))


def remedy() -> str:
    if shutil.which("brew"):
        return "Install one: brew install pgbouncer"
    return "Install one from your system's packages, or set PGBOUNCER to the path of one"


def fetch_debian(package: str, into: Path) -> None:
    """Download a Debian or Ubuntu package and the libraries it lacks here, and unpack them.

    Needs no root and touches nothing of the system: apt's lists and cache are private and go away.
    """
    scratch = into.with_name(f"{into.name}.{os.getpid()}")
    unpacked = scratch / "unpacked"
    try:
        for folder in ("lists/partial", "cache/archives/partial", "debs", "unpacked"):
            (scratch / folder).mkdir(parents=True)
        apt = [
            *("apt-get", "-qq"),
            *("-o", f"Dir::State::lists={scratch}/lists"),
            *("-o", f"Dir::Cache={scratch}/cache"),
            *("-o", "Debug::NoLocking=1"),
            *("-o", "APT::Sandbox::User=root"),  # apt's own user may not enter this folder
        ]
        _run([*apt, "update"], scratch)
        _run([*apt, "download", package], scratch / "debs")
        missing = list(_missing_libraries(next((scratch / "debs").glob("*.deb"))))
        if missing:
            _run([*apt, "download", *missing], scratch / "debs")
        for deb in (scratch / "debs").glob("*.deb"):
            _run(["dpkg-deb", "-x", str(deb), str(unpacked)], scratch)
        shutil.rmtree(into, ignore_errors=True)
        unpacked.rename(into)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _missing_libraries(deb: Path) -> Iterable[str]:
    depends = subprocess.run(
        ["dpkg-deb", "-f", str(deb), "Depends"], capture_output=True, text=True, check=True
    ).stdout
    for name in re.findall(r"(?:^|[,|] )(lib[^\s,]+)", depends):
        status = subprocess.run(
            ["dpkg-query", "-W", "-f=${db:Status-Status}", name], capture_output=True, text=True
        ).stdout
        if status != "installed" and name != "libc6":
            yield name


def _run(command: list[str], folder: Path) -> None:
    done = run_program(command, cwd=folder)
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip() or "no reason given").splitlines()[-1]
        raise LabError(f"{command[0]} failed: {said}. Is there a network, and space on the disk?")
