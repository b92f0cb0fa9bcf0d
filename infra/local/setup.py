"""Prepares a bare machine: virtual environment, pinned packages, PgBouncer.

`python3 -m infra.local.setup local` for the demo, `… tests` for the tests and linters too, and
`… checkov` or `… aws` for one tool each. Safe to run again, and quick when nothing changed.
Standard library only.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import itertools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from infra.local import ROOT, LabError, machine
from infra.local.interruption import run_program, take_sigterm_as_ctrl_c

OLDEST_PYTHON = (3, 11)
#: Files in the virtual environment: that this setup made it, and that it is not through with it.
OURS, UNFINISHED = "made-by-warm-engine", "unfinished"
REQUIREMENTS = {
    "local": ["handler/requirements.txt", "infra/local/requirements.txt"],
    "reports": [
        "handler/requirements.txt",
        "infra/local/requirements.txt",
        "infra/local/requirements-reports.txt",
    ],
    "tests": [
        "handler/requirements.txt",
        "infra/local/requirements.txt",
        "infra/local/requirements-reports.txt",
        "tests/requirements.txt",
    ],
    # Pins that agree with no others: in virtual environments of their own, VENV-checkov, VENV-aws.
    "checkov": ["infra/aws/requirements-checkov.txt"],
    "aws": ["infra/aws/requirements.txt"],
}
EMULATOR = ROOT / "tests/requirements-emulator.txt"


def folder(group: str) -> Path:
    """Where `group` is installed."""
    apart = f"-{group}" if group in ("checkov", "aws") else ""
    return ROOT / ((os.environ.get("VENV") or ".venv") + apart)


def prepare(group: str, folder: Path) -> None:
    """Make `folder` a virtual environment that holds `group`. Raises LabError."""
    if sys.version_info < OLDEST_PYTHON:
        raise LabError(
            f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}: 3.11 or "
            "later is needed. Name one, as in: make demo PYTHON=python3.13"
        )
    with _alone(folder):
        files, alone = _files(group)
        wanted, ready = fingerprint(group), folder / f"ready-{group}"
        if not ready.exists() or ready.read_text() != wanted:
            for other in folder.glob("ready-*"):
                other.unlink()  # what it vouches for is about to change
            _install(files, alone, folder)
            ready.write_text(wanted)
        if group not in ("checkov", "aws") and machine.pgbouncer() is None:
            with _step("PgBouncer, from this system's packages, into .tools"):
                machine.fetch_pgbouncer()
                if machine.pgbouncer() is None:
                    raise LabError(
                        "the package holds no PgBouncer. Set PGBOUNCER to the path of one"
                    )


def _files(group: str) -> tuple[list[Path], list[Path]]:
    """What lists the packages of `group`, and what lists those that come without dependencies."""
    return [ROOT / name for name in REQUIREMENTS[group]], [EMULATOR] if group == "tests" else []


def fingerprint(group: str) -> str:
    """What a virtual environment's file `ready-…` holds when it has `group`, as it is now."""
    wanted = hashlib.sha256(sys.version.encode())
    for file in itertools.chain(*_files(group)):
        wanted.update(file.read_bytes())
    return wanted.hexdigest()


def _install(files: list[Path], alone: list[Path], folder: Path) -> None:
    """`alone`: what is installed without what it asks for."""
    python = folder / "bin/python"
    uv = folder / "bin/uv"
    with _step(f"virtual environment {folder.name}, Python {sys.version.split()[0]}"):
        if not uv.exists() or not _same_python(python) or (folder / UNFINISHED).exists():
            _clear(folder)
            _make_venv(folder, python)
    (folder / UNFINISHED).touch()
    install = [str(uv), "pip", "install", "--quiet", "--python", str(python), "--require-hashes"]
    with _step("packages, pinned and checked against their hashes"):
        listed = [argument for file in files for argument in ("-r", str(file))]
        # A sandbox that has to compile what it imports starts in 2.3 s instead of 0.8.
        _run([*install, "--compile-bytecode", *listed])
        for file in alone:
            _run([*install, "--no-deps", "-r", str(file)])
    (folder / UNFINISHED).unlink()


def _clear(folder: Path) -> None:
    """Begin anew, but never in a folder that somebody else made."""
    if folder.exists() and any(folder.iterdir()) and not (folder / OURS).exists():
        raise LabError(f"{folder} was not made by this setup. Name another: make … VENV=.venv")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / OURS).touch()
    (folder / UNFINISHED).touch()


def _make_venv(folder: Path, python: Path) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        environment = {}
        has_pip = importlib.util.find_spec("ensurepip") is not None
        if not has_pip:  # Debian and Ubuntu keep it apart, in python3-venv
            if not machine.can_fetch():
                raise LabError(
                    "this Python has no ensurepip. Install it, or name another: PYTHON=…"
                )
            wheels = Path(scratch) / "python3-pip-whl"
            machine.fetch_debian("python3-pip-whl", wheels)
            environment["PYTHONPATH"] = str(next(wheels.rglob("pip-*.whl")))
        _run([sys.executable, "-m", "venv", *([] if has_pip else ["--without-pip"]), str(folder)])
        # uv alone, by its hash, from the file that pins everything else.
        block = re.search(
            r"^uv==.*?(?=^\S)", (ROOT / REQUIREMENTS["local"][1]).read_text(), re.M | re.S
        )
        if block is None:
            raise LabError("infra/local/requirements.txt does not pin uv. Run: make requirements")
        only_uv = Path(scratch) / "uv.txt"
        only_uv.write_text(block[0])
        pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        _run([*pip, "--require-hashes", "-r", str(only_uv)], environment)


def _same_python(python: Path) -> bool:
    try:
        said = subprocess.run(
            [str(python), "-c", "import sys; print(sys.version)"], capture_output=True, text=True
        ).stdout
    except OSError:
        return False
    return said.strip() == sys.version.strip()


def _run(command: list[str], environment: dict[str, str] | None = None) -> None:
    # UV_*: the system's certificates, which a company's proxy may have added to.
    done = run_program(
        command,
        env={**os.environ, "UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1", **(environment or {})},
    )
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
        reason = next((line for line in said if "rror" in line), said[-1])
        raise LabError(f"{' '.join(command[1:4])} failed: {reason.strip()}")


@contextlib.contextmanager
def _step(what: str) -> Iterator[None]:
    print(f"setup: {what} … ", end="", flush=True)
    begun = time.monotonic()
    try:
        yield
    except BaseException:
        print("failed", flush=True)
        raise
    print(f"{time.monotonic() - begun:.1f} s", flush=True)


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Two setups of one folder at once would tread on each other."""
    with Path(f"{folder}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def main() -> int:
    if len(sys.argv) != 2 or sys.argv[1] not in REQUIREMENTS:
        groups = "|".join(REQUIREMENTS)
        print(f"usage: python3 -m infra.local.setup {groups}", file=sys.stderr)
        return 2
    take_sigterm_as_ctrl_c()
    try:
        prepare(sys.argv[1], folder(sys.argv[1]))
    except LabError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"setup: {error.strerror}: {error.filename}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
