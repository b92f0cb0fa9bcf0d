"""A stack leaves nothing behind, however it ends, and says in one line why it cannot start."""

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

from infra.local import LabError, folder, machine, stack
from infra.local.folder import PREFIX, is_up, sweep
from infra.local.server import account
from infra.local.stack import ENDPOINTS, Stack
from tests.conftest import command, needs_root, run

#: A program that holds a stack until it is told to end. Prints the stack's folder.
HOLD = """
import sys
from infra.local.stack import Stack

with Stack(report=lambda line: print(line, flush=True)) as stack:
    print(stack.folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def own_temporary_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """So that whatever is left in it is this test's. Short, and open to `nobody`."""
    tmp_path_factory.getbasetemp()  # pytest's own stays where it is
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        yield Path(folder)
        for left in Path(folder).glob(f"{PREFIX}*"):  # of a test that failed half-way
            sweep(left)


def left_in(folder: Path) -> list[str]:
    """What processes and folders of stacks there are in `folder`."""
    words = [
        " ".join(process.info["cmdline"])
        for process in psutil.process_iter(["cmdline"])
        if str(folder) in " ".join(process.info["cmdline"] or [])
    ]
    return words + [path.name for path in folder.glob("*")]


def test_after_the_block_nothing_is_left(own_temporary_folder: Path) -> None:
    with Stack() as one, Stack() as two:
        assert one.postgres.port != two.postgres.port
        assert len(list(own_temporary_folder.glob(f"{PREFIX}*"))) == 2
        assert left_in(own_temporary_folder)
    assert not left_in(own_temporary_folder)


def test_after_an_error_in_the_block_nothing_is_left(own_temporary_folder: Path) -> None:
    with pytest.raises(LookupError), Stack():
        raise LookupError
    assert not left_in(own_temporary_folder)


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
def test_a_demo_that_is_interrupted_leaves_nothing(
    own_temporary_folder: Path, moment: str, number: signal.Signals
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
    assert not left_in(own_temporary_folder)


def test_what_a_killed_run_left_is_swept_by_the_next(own_temporary_folder: Path) -> None:
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
    assert len(left_in(own_temporary_folder)) >= 3  # Postgres, PgBouncer and the folder
    with Stack():
        assert not folder.exists()
        assert not [words for words in left_in(own_temporary_folder) if str(folder) in words]
    assert not left_in(own_temporary_folder)


def test_a_stack_that_is_up_is_not_swept(own_temporary_folder: Path) -> None:
    with Stack() as up:
        sweep(up.folder)
        assert up.folder.exists()
        assert up.pgbouncer.show("VERSION")


def test_a_port_taken_in_between_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    from infra.local import server

    with Stack() as first:
        ports = iter([first.postgres.port, server.free_port(), first.pgbouncer.port])
        real = server.free_port
        monkeypatch.setattr(server, "free_port", lambda: next(ports, None) or real())
        with Stack() as second:
            assert second.postgres.port != first.postgres.port
            assert second.pgbouncer.port != first.pgbouncer.port


def test_a_server_starts_again_on_its_port() -> None:
    with Stack() as up:
        port = up.pgbouncer.port
        up.pgbouncer.stop()
        assert not up.pgbouncer.alive
        up.pgbouncer.start()
        assert up.pgbouncer.port == port
        assert up.pgbouncer.show("VERSION")


def test_a_postgres_that_does_not_start_says_why(own_temporary_folder: Path) -> None:
    with pytest.raises(LabError, match=r"^Postgres did not start: .*max_connections") as raised:
        Stack(max_connections=0).__enter__()
    assert "\n" not in str(raised.value)
    assert not left_in(own_temporary_folder)


@needs_root
def test_a_full_disk_is_said_in_one_line(
    own_temporary_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = own_temporary_folder / "small"
    small.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=60m", "tmpfs", small], check=True)
    try:
        monkeypatch.setenv("TMPDIR", str(small))
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(folder, "VAR_TMP", small)
        with pytest.raises(LabError, match=r"^200 MiB free .* Make room, or set TMPDIR"):
            Stack().__enter__()
        monkeypatch.setattr(folder, "ROOM", 0)  # it fills up meanwhile
        with pytest.raises(LabError, match="No space left on device") as raised:
            Stack().__enter__()
        assert "\n" not in str(raised.value)
        assert not left_in(small)
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
    ("text", "complaint"),
    [
        ("echo PgBouncer 1.17.0", "is PgBouncer 1.17.0, which is too old: 1.18 or later"),
        ("echo hello", "is not a PgBouncer that runs here: it does not say its version"),
        ("exit 1", "is not a PgBouncer that runs here"),
    ],
)
def test_a_pgbouncer_that_will_not_do_is_named(
    text: str, complaint: str, own_temporary_folder: Path, tmp_path: Path
) -> None:
    code, output = run("-m", "infra.local", "demo", env={"PGBOUNCER": script(tmp_path, text)})
    assert code == 1
    assert complaint in output.splitlines()[-1]
    assert "Traceback" not in output
    assert not left_in(own_temporary_folder)


def test_without_a_pgbouncer_and_a_way_to_get_one_the_remedy_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(LabError, match="Install one from your system's packages"):
        machine.fetch_pgbouncer()


def test_a_stack_that_is_up_says_where_to_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "new/endpoints.json"
    with Stack() as up:
        with up.published(path) as published:
            assert published
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
            said = json.loads(path.read_text())
            assert said["postgres"] == {"host": "127.0.0.1", "port": up.postgres.port}
            assert said["pgbouncer"] == {"host": "127.0.0.1", "port": up.pgbouncer.port}
            assert said["admin"] == {"user": "postgres", "password": up.postgres.password}
            assert said["env"] == up.environment()
            assert stack.read_endpoints(path)["env"]["DB_PORT"] == str(up.pgbouncer.port)
            with up.published(path) as again:
                assert not again
            assert path.exists()
        assert not path.parent.exists()


def test_without_a_stack_the_remedy_is_named(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"no stack is up. .*: make run"):
        stack.read_endpoints(tmp_path / "endpoints.json")


def test_what_a_killed_run_published_is_not_believed(tmp_path: Path) -> None:
    path = tmp_path / "endpoints.json"
    path.write_text(json.dumps({"folder": str(tmp_path), "env": {}}))
    (tmp_path / "lock").touch()
    with pytest.raises(LabError):
        stack.read_endpoints(path)


def test_nothing_is_published_where_nothing_runs() -> None:
    assert not ENDPOINTS.exists() or is_up(Path(json.loads(ENDPOINTS.read_text())["folder"]))


def test_what_was_killed_while_it_was_taken_away_is_taken_away_by_the_next(tmp_path: Path) -> None:
    """Its lock goes early; one that is being made has none yet."""
    old, new = tmp_path / f"{PREFIX}old", tmp_path / f"{PREFIX}new"
    for each in (old, new):
        (each / "data").mkdir(parents=True)
    os.utime(old, (0, 0))
    for each in (old, new):
        sweep(each)
    assert [left.name for left in tmp_path.iterdir()] == [new.name]
