"""A stack leaves nothing behind, however it ends, and reports in one line why it cannot start."""

import json
import os
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import LabError, private_directory, stack, system_packages
from infra.local.private_directory import PREFIX, is_up, remove_abandoned
from infra.local.server import account
from infra.local.stack import ENDPOINTS, Stack
from tests.conftest import command, needs_root, run
from tests.integration.conftest import stack_folder

#: Starts a stack, prints its folder and keeps the stack until the process ends.
KEEP_STACK = """
import sys
from infra.local.stack import Stack

with Stack(report=lambda line: print(line, flush=True)) as stack:
    print(stack.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary_directory(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Create a folder for the test's stacks, which `nobody` may enter."""
    with stack_folder(0o755, monkeypatch, tmp_path_factory) as folder:
        yield folder
        for abandoned in folder.glob(f"{PREFIX}*"):  # left by a test that failed
            remove_abandoned(abandoned)


def leftovers_in(folder: Path) -> list[str]:
    """List the processes and folders of stacks in `folder`."""
    command_lines = [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]
    return command_lines + [path.name for path in folder.glob("*")]


def test_everything_is_removed_at_the_end_of_the_block(temporary_directory: Path) -> None:
    with Stack() as first, Stack() as second:
        assert first.postgres.port != second.postgres.port
        assert len(list(temporary_directory.glob(f"{PREFIX}*"))) == 2
        assert leftovers_in(temporary_directory)
    assert not leftovers_in(temporary_directory)


def test_an_error_in_the_block_removes_everything(temporary_directory: Path) -> None:
    with pytest.raises(LookupError), Stack():
        raise LookupError
    assert not leftovers_in(temporary_directory)


@pytest.mark.parametrize(
    ("output_line", "signal_number"),
    [
        ("Postgres", signal.SIGINT),
        ("database", signal.SIGTERM),
        ("PgBouncer", signal.SIGINT),
        ("sandbox", signal.SIGTERM),
        ("cold", signal.SIGINT),
        ("warm", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_no_process_or_folder(
    temporary_directory: Path, output_line: str, signal_number: signal.Signals
) -> None:
    process = command("-m", "infra.local", "demo")
    assert process.stdout is not None
    for line in process.stdout:
        if output_line in line[:22]:
            break
    process.send_signal(signal_number)
    output = process.stdout.read()
    assert process.wait(30) == 130
    process.stdout.close()
    assert "Traceback" not in output
    assert not leftovers_in(temporary_directory)


def test_leftovers_of_a_killed_run_are_removed_by_the_next(temporary_directory: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", KEEP_STACK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    folder = Path([process.stdout.readline() for _ in range(4)][-1].strip())
    assert is_up(folder)
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    assert not is_up(folder)
    assert len(leftovers_in(temporary_directory)) >= 3  # Postgres, PgBouncer and the folder
    with Stack():
        assert not folder.exists()
        assert not [
            leftover for leftover in leftovers_in(temporary_directory) if str(folder) in leftover
        ]
    assert not leftovers_in(temporary_directory)


def test_a_running_stack_is_not_removed(temporary_directory: Path) -> None:
    with Stack() as running_stack:
        remove_abandoned(running_stack.folder)
        assert running_stack.folder.exists()
        assert running_stack.pgbouncer.show("VERSION")


def test_a_port_that_is_no_longer_free_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.local import server

    with Stack() as first:
        ports = iter([first.postgres.port, server.free_port(), first.pgbouncer.port])
        free_port = server.free_port
        monkeypatch.setattr(server, "free_port", lambda: next(ports, None) or free_port())
        with Stack() as second:
            assert second.postgres.port != first.postgres.port
            assert second.pgbouncer.port != first.pgbouncer.port


def test_a_server_restarts_on_its_port() -> None:
    with Stack() as running_stack:
        port = running_stack.pgbouncer.port
        running_stack.pgbouncer.stop()
        assert not running_stack.pgbouncer.alive
        running_stack.pgbouncer.start()
        assert running_stack.pgbouncer.port == port
        assert running_stack.pgbouncer.show("VERSION")


def test_a_postgres_that_does_not_start_reports_the_reason(temporary_directory: Path) -> None:
    with pytest.raises(LabError, match=r"^Postgres did not start: .*max_connections") as error_info:
        Stack(max_connections=0).__enter__()
    assert "\n" not in str(error_info.value)
    assert not leftovers_in(temporary_directory)


@needs_root
def test_a_full_disk_is_reported_in_one_line(
    temporary_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_disk = temporary_directory / "small"
    small_disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(small_disk)]
    process = subprocess.run(mount, capture_output=True, text=True)
    if process.returncode:
        small_disk.rmdir()
        pytest.skip(f"no file system can be mounted here: {process.stderr.strip()}")
    try:
        monkeypatch.setenv("TMPDIR", str(small_disk))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(private_directory, "VAR_TMP", small_disk)
        with pytest.raises(LabError, match=r" 200 MiB free .* Free some space, or set TMPDIR"):
            Stack().__enter__()
        monkeypatch.setattr(private_directory, "REQUIRED_BYTES", 0)  # fails later, while it fills
        with pytest.raises(LabError, match=r"No space left|Check free disk") as error_info:
            Stack().__enter__()
        assert "\n" not in str(error_info.value)
        assert not leftovers_in(small_disk)
    finally:
        subprocess.run(["umount", small_disk], check=True)
        small_disk.rmdir()


@needs_root
def test_no_server_runs_as_root() -> None:
    with Stack() as running_stack:
        for server in (running_stack.postgres, running_stack.pgbouncer):
            assert server.process is not None
            process = psutil.Process(server.process.pid)
            assert process.uids().real == process.uids().effective == account().uid != 0


def fake_pgbouncer(folder: Path, text: str) -> str:
    """Write a shell script named `pgbouncer` and return its path."""
    path = folder / "pgbouncer"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("echo PgBouncer 1.17.0", "is PgBouncer 1.17.0, which is too old: 1.18 or later"),
        ("echo hello", "is not a PgBouncer that runs here: it does not print its version"),
        ("exit 1", "is not a PgBouncer that runs here"),
    ],
)
def test_an_unusable_pgbouncer_is_reported(
    text: str, message: str, temporary_directory: Path, tmp_path: Path
) -> None:
    status, output = run(
        "-m", "infra.local", "demo", env={"PGBOUNCER": fake_pgbouncer(tmp_path, text)}
    )
    assert status == 1
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not leftovers_in(temporary_directory)


def test_a_missing_pgbouncer_is_reported_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="Install the package pgbouncer; or set PGBOUNCER"):
        system_packages.fetch_pgbouncer()


def test_endpoints_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new/endpoints.json"
    with Stack() as running_stack:
        with running_stack.published(path) as published:
            assert published
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            endpoints = json.loads(path.read_text())
            assert endpoints["postgres"] == {
                "host": "127.0.0.1",
                "port": running_stack.postgres.port,
            }
            assert endpoints["pgbouncer"] == {
                "host": "127.0.0.1",
                "port": running_stack.pgbouncer.port,
            }
            assert endpoints["admin"] == {
                "user": "postgres",
                "password": running_stack.postgres.password,
            }
            assert endpoints["env"] == running_stack.environment()
            assert stack.read_endpoints(path)["env"]["DB_PORT"] == str(running_stack.pgbouncer.port)
            with running_stack.published(path) as published_twice:
                assert not published_twice
            assert path.exists()
        assert not path.parent.exists()


def test_a_missing_stack_is_reported_with_a_hint(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no stack is up. .*: make run"):
        stack.read_endpoints(tmp_path / "endpoints.json")


def test_endpoints_of_a_killed_run_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"folder": str(tmp_path), "env": {}}))
    (tmp_path / "lock").touch()
    with pytest.raises(LabError):
        stack.read_endpoints(path)


def test_no_endpoints_are_published_without_a_stack() -> None:
    assert not ENDPOINTS.exists() or is_up(Path(json.loads(ENDPOINTS.read_text())["folder"]))


def test_a_cleanup_killed_halfway_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """A half-removed stack has no lock, but neither has a new one that is still being created."""
    old, new = tmp_path / f"{PREFIX}old", tmp_path / f"{PREFIX}new"
    for folder in (old, new):
        (folder / "data").mkdir(parents=True)
    os.utime(old, (0, 0))
    for folder in (old, new):
        remove_abandoned(folder)
    assert [abandoned.name for abandoned in tmp_path.iterdir()] == [new.name]
