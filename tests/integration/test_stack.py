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

#: Holds a stack until it is terminated. Prints the stack's folder.
HOLD = """
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
    """Isolate leftovers to this test. The path is short and open to `nobody`."""
    tmp_path_factory.getbasetemp()  # keeps pytest's own
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
        for abandoned in Path(folder).glob(f"{PREFIX}*"):  # of a test that failed halfway
            remove_abandoned(abandoned)


def leftovers_in(folder: Path) -> list[str]:
    """List the processes and folders of stacks in `folder`."""
    words = [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]
    return words + [path.name for path in folder.glob("*")]


def test_leaving_the_block_removes_everything(temporary_directory: Path) -> None:
    with Stack() as one, Stack() as two:
        assert one.postgres.port != two.postgres.port
        assert len(list(temporary_directory.glob(f"{PREFIX}*"))) == 2
        assert leftovers_in(temporary_directory)
    assert not leftovers_in(temporary_directory)


def test_an_error_in_the_block_removes_everything(temporary_directory: Path) -> None:
    with pytest.raises(LookupError), Stack():
        raise LookupError
    assert not leftovers_in(temporary_directory)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        ("Postgres", signal.SIGINT),
        ("database", signal.SIGTERM),
        ("PgBouncer", signal.SIGINT),
        ("sandbox", signal.SIGTERM),
        ("cold", signal.SIGINT),
        ("warm", signal.SIGTERM),
    ],
)
def test_an_interrupted_demo_leaves_nothing(
    temporary_directory: Path, moment: str, number: signal.Signals
) -> None:
    process = command("-m", "infra.local", "demo")
    assert process.stdout is not None
    for line in process.stdout:
        if moment in line[:22]:
            break
    process.send_signal(number)
    output = process.stdout.read()
    assert process.wait(30) == 130
    process.stdout.close()
    assert "Traceback" not in output
    assert not leftovers_in(temporary_directory)


def test_leftovers_of_a_killed_run_are_removed_by_the_next(temporary_directory: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert killed.stdout is not None
    assert killed.stdin is not None
    folder = Path([killed.stdout.readline() for _ in range(4)][-1].strip())
    assert is_up(folder)
    killed.kill()
    killed.wait()
    killed.stdin.close()
    killed.stdout.close()
    assert not is_up(folder)
    assert len(leftovers_in(temporary_directory)) >= 3  # Postgres, PgBouncer and the folder
    with Stack():
        assert not folder.exists()
        assert not [words for words in leftovers_in(temporary_directory) if str(folder) in words]
    assert not leftovers_in(temporary_directory)


def test_a_running_stack_is_not_removed(temporary_directory: Path) -> None:
    with Stack() as up:
        remove_abandoned(up.folder)
        assert up.folder.exists()
        assert up.pgbouncer.show("VERSION")


def test_a_port_taken_in_the_meantime_is_avoided(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.local import server

    with Stack() as first:
        ports = iter([first.postgres.port, server.free_port(), first.pgbouncer.port])
        real = server.free_port
        monkeypatch.setattr(server, "free_port", lambda: next(ports, None) or real())
        with Stack() as second:
            assert second.postgres.port != first.postgres.port
            assert second.pgbouncer.port != first.pgbouncer.port


def test_a_server_restarts_on_its_port() -> None:
    with Stack() as up:
        port = up.pgbouncer.port
        up.pgbouncer.stop()
        assert not up.pgbouncer.alive
        up.pgbouncer.start()
        assert up.pgbouncer.port == port
        assert up.pgbouncer.show("VERSION")


def test_a_postgres_that_does_not_start_reports_the_reason(temporary_directory: Path) -> None:
    with pytest.raises(LabError, match=r"^Postgres did not start: .*max_connections") as raised:
        Stack(max_connections=0).__enter__()
    assert "\n" not in str(raised.value)
    assert not leftovers_in(temporary_directory)


@needs_root
def test_a_full_disk_is_reported_in_one_line(
    temporary_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = temporary_directory / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=True)
    try:
        monkeypatch.setenv("TMPDIR", str(small))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(private_directory, "VAR_TMP", small)
        with pytest.raises(LabError, match=r" 200 MiB free .* Free some space, or set TMPDIR"):
            Stack().__enter__()
        monkeypatch.setattr(private_directory, "REQUIRED_BYTES", 0)  # it fills up meanwhile
        with pytest.raises(LabError, match="No space left on device") as raised:
            Stack().__enter__()
        assert "\n" not in str(raised.value)
        assert not leftovers_in(small)
    finally:
        subprocess.run(["umount", small], check=True)
        small.rmdir()


@needs_root
def test_started_by_root_no_server_runs_as_root() -> None:
    with Stack() as up:
        for server in (up.postgres, up.pgbouncer):
            assert server.process is not None
            process = psutil.Process(server.process.pid)
            assert process.uids().real == process.uids().effective == account().uid != 0


def script(folder: Path, text: str) -> str:
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
    code, output = run("-m", "infra.local", "demo", env={"PGBOUNCER": script(tmp_path, text)})
    assert code == 1
    assert message in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not leftovers_in(temporary_directory)


def test_a_missing_pgbouncer_is_reported_with_a_hint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="Install the package pgbouncer; or set PGBOUNCER"):
        system_packages.fetch_pgbouncer()


def test_endpoints_are_readable_by_the_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new/endpoints.json"
    with Stack() as up:
        with up.published(path) as published:
            assert published
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            endpoints = json.loads(path.read_text())
            assert endpoints["postgres"] == {"host": "127.0.0.1", "port": up.postgres.port}
            assert endpoints["pgbouncer"] == {"host": "127.0.0.1", "port": up.pgbouncer.port}
            assert endpoints["admin"] == {"user": "postgres", "password": up.postgres.password}
            assert endpoints["env"] == up.environment()
            assert stack.read_endpoints(path)["env"]["DB_PORT"] == str(up.pgbouncer.port)
            with up.published(path) as again:
                assert not again
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


def test_without_a_stack_no_endpoints_are_published() -> None:
    assert not ENDPOINTS.exists() or is_up(Path(json.loads(ENDPOINTS.read_text())["folder"]))


def test_a_cleanup_killed_halfway_is_finished_by_the_next_run(tmp_path: Path) -> None:
    """Its lock is deleted early, and a stack that is being created has none yet."""
    old, new = tmp_path / f"{PREFIX}old", tmp_path / f"{PREFIX}new"
    for each in (old, new):
        (each / "data").mkdir(parents=True)
    os.utime(old, (0, 0))
    for each in (old, new):
        remove_abandoned(each)
    assert [abandoned.name for abandoned in tmp_path.iterdir()] == [new.name]
