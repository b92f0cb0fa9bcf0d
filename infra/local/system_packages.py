"""Finds PgBouncer and Postgres, and downloads Debian packages without changing the system.

Standard library only, because it runs before anything is installed.
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
from infra.local.signals import run_program

TOOLS = ROOT / ".tools"
OLDEST_PGBOUNCER = (1, 18)
#: The command that installs PgBouncer, by package manager.
INSTALL = {
    "apt-get": "apt-get install pgbouncer",
    "brew": "brew install pgbouncer",
    "dnf": "dnf install pgbouncer",
    "apk": "apk add pgbouncer",
    "pacman": "pacman -S pgbouncer",
    "zypper": "zypper install pgbouncer",
}


@dataclass(frozen=True)
class PgBouncerProgram:
    path: Path
    #: The folder of its shared libraries, or None if the system has them.
    libraries: Path | None
    version: tuple[int, ...]


def find_pgbouncer() -> PgBouncerProgram | None:
    """Return `$PGBOUNCER`, the system's PgBouncer or the one in `.tools`, or None if there is none.

    Raises LabError if it does not run or is too old.
    """
    downloaded = TOOLS / "pgbouncer/usr/sbin/pgbouncer"
    chosen = os.environ.get("PGBOUNCER")
    system = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    path = Path(chosen or system or downloaded)
    if not chosen and not path.exists():
        return None
    libraries, environment = None, dict(os.environ)
    if path == downloaded:
        libraries = next((TOOLS / "pgbouncer/usr/lib").glob("*-linux-*"), None)
    if libraries is not None:
        environment["LD_LIBRARY_PATH"] = str(libraries)
    try:
        output = subprocess.run(
            [path, "--version"], env=environment, capture_output=True, text=True, check=True
        ).stdout
        version = tuple(map(int, re.findall(r"\d+", re.findall(r"PgBouncer ([\d.]+)", output)[0])))
    except (OSError, subprocess.CalledProcessError, IndexError) as error:
        reason = getattr(error, "strerror", None) or "it does not print its version"
        raise LabError(
            f"{path} is not a PgBouncer that runs here: {reason}. {install_hint()}"
        ) from None
    if version < OLDEST_PGBOUNCER:
        raise LabError(
            f"{path} is PgBouncer {'.'.join(map(str, version))}, which is too old: "
            f"1.18 or later is needed. {install_hint()}"
        )
    return PgBouncerProgram(path, libraries, version)


def named_postgres() -> Path | None:
    """Return `$POSTGRES`, a folder with server binaries, or None if unset.

    Raises LabError if there are no binaries.
    """
    value = os.environ.get("POSTGRES")
    if not value:
        return None
    folder = Path(value).absolute()
    if not all(os.access(folder / program, os.X_OK) for program in ("postgres", "initdb")):
        raise LabError(
            f"POSTGRES={value} is not a folder with the programs postgres and initdb. "
            "Unset it, or name one, such as /usr/lib/postgresql/18/bin"
        )
    return folder


def fetch_pgbouncer() -> None:
    """Download PgBouncer into `.tools`. Raises LabError if that is not possible.

    Even root does not install it, because this would start a system service on port 6432.
    """
    if not can_fetch():
        raise LabError(f"PgBouncer is not installed. {install_hint()}")
    fetch_debian_package("pgbouncer", TOOLS / "pgbouncer")


def can_fetch() -> bool:
    """Return whether this system has Debian's package tools."""
    return all(map(shutil.which, ("apt-get", "dpkg-deb", "dpkg-query")))


def install_hint() -> str:
    """Return how to install PgBouncer. Only tested with apt-get: see docs/support.md."""
    command = next((install for tool, install in INSTALL.items() if shutil.which(tool)), None)
    install = f"Install one: {command}" if command else "Install the package pgbouncer"
    return f"{install}; or set PGBOUNCER to the path of one"


def fetch_debian_package(package: str, into: Path) -> None:
    """Download and unpack a Debian or Ubuntu package and the libraries that are not installed.

    It needs no root, because apt uses temporary lists and a temporary cache.
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
            *("-o", "APT::Sandbox::User=root"),  # apt's own user may not enter the folder
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
    """Yield the libraries that the package depends on and that are not installed."""
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
    result = run_program(command, cwd=folder)
    if result.returncode:
        output = result.stderr.strip() or result.stdout.strip() or "no output"
        reason = output.splitlines()[-1].rstrip(".")
        raise LabError(f"{command[0]} failed: {reason}. Check the network and the free disk space")
