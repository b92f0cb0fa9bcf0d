"""Installs what a target needs: a virtual environment, pinned packages, PgBouncer.

`python3 -m infra.local.setup GROUP`, where GROUP is a key of REQUIREMENTS: `local` for the demo,
`tests` also for the tests and linters, `service` for the service in the folder `ROOT`. It does
nothing if nothing has changed. Standard library only, because it runs before the installation.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from infra.local import ROOT, LabError, system_packages
from infra.local.signals import run_program, treat_sigterm_as_sigint

OLDEST_PYTHON = (3, 11)
#: Marks a virtual environment that this setup created.
CREATED_MARKER = "made-by-warm-engine"
#: Marks a virtual environment while it is incomplete.
INCOMPLETE_MARKER = "unfinished"
#: The solution for a folder that is read-only or mounted with noexec.
WRITABLE = "Copy the project to a folder where you can write files and run programs"
_LOCAL = ["handler/requirements.txt", "infra/local/requirements.txt"]
_REPORTS = [*_LOCAL, "infra/local/requirements-reports.txt"]
_DATABASE = ["handler/requirements.txt", "infra/database/requirements.txt"]
REQUIREMENTS = {
    "local": _LOCAL,
    "reports": _REPORTS,
    "tests": [*_REPORTS, "tests/requirements.txt"],
    # Their pins conflict with the others: see APART.
    "checkov": ["infra/aws/requirements-checkov.txt"],
    "aws": ["infra/aws/requirements.txt"],
    "copier": ["infra/service/requirements.txt"],
    "stac": ["tests/examine/recipes/stac_fastapi/requirements.txt"],
    # In the folder of another service.
    "service": [*_DATABASE, "tests/requirements.txt"],
}
#: Groups with their own virtual environment, such as .venv-aws.
APART = ("checkov", "aws", "copier", "stac")
#: The pytest plugin for services that are tested on the lab.
PLUGIN = ROOT / "infra/local/plugin"
EMULATOR = ROOT / "tests/requirements-emulator.txt"


def folder(group: str) -> Path:
    """Return the virtual environment of `group`."""
    if group == "service":
        return _root(group) / ".venv"
    suffix = f"-{group}" if group in APART else ""
    return ROOT / ((os.environ.get("VENV") or ".venv") + suffix)


def _root(group: str) -> Path:
    """Return the folder with the requirements of `group`. Raises LabError if `ROOT` has none."""
    if group != "service":
        return ROOT
    root = Path(os.environ["ROOT"]).absolute()
    if missing := [name for name in REQUIREMENTS[group] if not (root / name).exists()]:
        raise LabError(f"ROOT={root} is not a service: it has no {missing[0]}")
    return root


def prepare(group: str, folder: Path) -> None:
    """Install `group` into the virtual environment `folder`. Raises LabError if this fails."""
    if reason := unsuitable_python():
        raise LabError(f"{reason}. Set another, as in: make demo PYTHON=python3.13")
    with _locked(folder):
        files, without_dependencies = _files(group)
        current, ready = fingerprint(group), folder / f"ready-{group}"
        if not ready.exists() or ready.read_text() != current:
            for outdated in folder.glob("ready-*"):
                outdated.unlink()  # the packages are about to change
            _install(files, without_dependencies, folder)
            if group == "service":
                for packages in folder.glob("lib/python3*/site-packages"):
                    (packages / "warm-engine-lab.pth").write_text(f"{PLUGIN}\n")
            ready.write_text(current)
        if group not in (*APART, "service") and system_packages.find_pgbouncer() is None:
            with _progress("PgBouncer, from this system's packages, into .tools"):
                system_packages.fetch_pgbouncer()
                if system_packages.find_pgbouncer() is None:
                    raise LabError("the package has no PgBouncer. Set PGBOUNCER to the path of one")


def unsuitable_python() -> str | None:
    """Return why this interpreter is not supported, or None if it is."""
    if sys.version_info < OLDEST_PYTHON:
        version = ".".join(map(str, sys.version_info[:2]))
        return f"{sys.executable} is Python {version}: 3.11 or later is needed"
    if sys.implementation.name != "cpython" or sysconfig.get_config_var("Py_GIL_DISABLED"):
        kind = "free-threaded" if sys.implementation.name == "cpython" else sys.implementation.name
        return f"{sys.executable} is {kind}: CPython 3.11 or later with its GIL is needed"
    return None


def _files(group: str) -> tuple[list[Path], list[Path]]:
    """Return the requirements of `group`, and those to be installed without dependencies."""
    root = _root(group)
    return [root / name for name in REQUIREMENTS[group]], [EMULATOR] if group == "tests" else []


def fingerprint(group: str) -> str:
    """Return the content of the file `ready-…` while `group` is installed and up to date."""
    digest = hashlib.sha256(f"{sys.version} {ROOT}".encode())
    for file in itertools.chain(*_files(group)):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _install(files: list[Path], without_dependencies: list[Path], folder: Path) -> None:
    python, uv = folder / "bin/python", folder / "bin/uv"
    try:
        with _progress(f"virtual environment {folder.name}, Python {sys.version.split()[0]}"):
            if not uv.exists() or not _same_python(python) or (folder / INCOMPLETE_MARKER).exists():
                _clear(folder)
                _make_venv(folder, python)
        (folder / INCOMPLETE_MARKER).touch()
        words = ("pip", "install", "--quiet", "--require-hashes", "--python")
        install = [str(uv), *words, str(python)]
        with _progress("packages, pinned and checked against their hashes"):
            options = [option for file in files for option in ("-r", str(file))]
            # Without bytecode, a sandbox starts in 2.3 s instead of 0.8 s.
            _run([*install, "--compile-bytecode", *options])
            for file in without_dependencies:
                _run([*install, "--no-deps", "-r", str(file)])
    except BaseException:
        if (folder / INCOMPLETE_MARKER).exists():
            shutil.rmtree(folder, ignore_errors=True)
        raise
    (folder / INCOMPLETE_MARKER).unlink()


def _clear(folder: Path) -> None:
    """Empty the folder. Raises LabError if something else created it."""
    if folder.exists() and any(folder.iterdir()) and not (folder / CREATED_MARKER).exists():
        raise LabError(f"{folder} was not created by this setup. Use another: make … VENV=.venv")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / CREATED_MARKER).touch()
    (folder / INCOMPLETE_MARKER).touch()


def _make_venv(folder: Path, python: Path) -> None:
    """Create a virtual environment with uv."""
    with tempfile.TemporaryDirectory() as scratch:
        environment = {}
        has_pip = importlib.util.find_spec("ensurepip") is not None
        if not has_pip:  # on Debian and Ubuntu it is in the package python3-venv
            if not system_packages.can_fetch():
                raise LabError("this Python has no ensurepip. Install it, or set another: PYTHON=…")
            wheels = Path(scratch) / "python3-pip-whl"
            system_packages.fetch_debian_package("python3-pip-whl", wheels)
            environment["PYTHONPATH"] = str(next(wheels.rglob("pip-*.whl")))
        _run([sys.executable, "-m", "venv", *([] if has_pip else ["--without-pip"]), str(folder)])
        # uv installs the other packages, and is itself pinned in the same file.
        requirements = (ROOT / REQUIREMENTS["local"][1]).read_text()
        uv_entry = re.search(r"^uv==.*?(?=^\S)", requirements, re.M | re.S)
        if uv_entry is None:
            raise LabError("infra/local/requirements.txt does not pin uv. Run: make requirements")
        uv_requirements = Path(scratch) / "uv.txt"
        uv_requirements.write_text(uv_entry[0])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "-r", str(uv_requirements)], environment)


def _same_python(python: Path) -> bool:
    """Return whether `python` has the version of this interpreter."""
    try:
        output = subprocess.run(
            [str(python), "-c", "import sys; print(sys.version)"], capture_output=True, text=True
        ).stdout
    except OSError:
        return False
    return output.strip() == sys.version.strip()


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    # UV_*: use the system's certificates, which may include those of a proxy.
    certificates = {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
    result = run_program(command, env={**os.environ, **certificates, **(environment or {})})
    if result.returncode:
        lines = [line for line in result.stderr.splitlines() if line.strip()] or ["no output"]
        reason = next((line for line in lines if "rror" in line), lines[-1])
        remedy = (
            "Free some disk space and run it again"
            if os.strerror(errno.ENOSPC) in result.stderr + result.stdout
            else "Check the network and the free disk space, then run it again"
        )
        raise LabError(f"{' '.join(command[1:4])} failed: {reason.strip(' .')}. {remedy}")


@contextlib.contextmanager
def _progress(message: str) -> Iterator[None]:
    print(f"setup: {message} … ", end="", flush=True)
    started = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - started:.1f} s", flush=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock out other setups of the folder.

    The flags matter where other users can create a link or a FIFO with the name of the lock.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(f"{folder}.lock", flags, 0o600)) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    if len(sys.argv) < 2 or not set(sys.argv[1:]) <= REQUIREMENTS.keys():
        groups = "|".join(REQUIREMENTS)
        print(f"usage: python3 -m infra.local.setup {groups}", file=sys.stderr)
        return 2
    treat_sigterm_as_sigint()
    try:
        for group in sys.argv[1:]:
            prepare(group, folder(group))
    except LabError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        remedy = {
            errno.ENOSPC: ". Free some disk space and run it again",
            errno.EROFS: f". {WRITABLE}",
            errno.EACCES: f". {WRITABLE}",
        }.get(error.errno or 0, "")
        print(f"setup: {error.strerror}: {error.filename or ROOT}{remedy}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
