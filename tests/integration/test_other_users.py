"""What another user of the machine cannot do to the lab, especially to root's."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import private_directory, setup
from infra.local.fleet import Fleet, peer
from infra.local.private_directory import PREFIX, sweep
from infra.local.server import Account, account
from infra.local.stack import Stack
from tests.conftest import needs_root
from tests.integration.failing_fleet import READ

SECRET = "root's own\n"


@pytest.fixture
def public(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A world-writable folder like /tmp, for the stacks of a test."""
    tmp_path_factory.getbasetemp()  # keeps pytest's own
    with tempfile.TemporaryDirectory(prefix="t-", dir="/tmp") as folder:
        Path(folder).chmod(0o1777)
        monkeypatch.setenv("TMPDIR", folder)
        monkeypatch.setattr(tempfile, "tempdir", None)
        monkeypatch.setattr(private_directory, "VAR_TMP", Path("/nowhere"))
        yield Path(folder)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def is_untouched(path: Path) -> bool:
    found = path.stat()
    mine = (found.st_uid, stat.S_IMODE(found.st_mode)) == (os.getuid(), 0o600)
    return mine and path.read_text() == SECRET


def as_nobody(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    options = account().popen_options
    return subprocess.run(words, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]  # user, group: see Account


# --- Files that root opens, writes and changes the owner of --------------------------------------


@needs_root
def test_root_follows_no_symbolic_link_of_the_server_account(public: Path, victim: Path) -> None:
    """Under each name that root opens, changes or chowns when it starts a server."""
    with Stack() as up:
        folders = [up.folder, up.pgbouncer.folder]
        for folder in folders:
            for name in ("ca.pem", "Postgres.log", "PgBouncer.log", "site.ini", "new", "x.process"):
                as_nobody("ln", "-sfn", victim, folder / name)
                as_nobody("mkfifo", folder / f"fifo-{name}")
        up.pgbouncer.stop()
        up.postgres.stop()
        up.postgres.start()
        up.pgbouncer.start()
        assert up.pgbouncer.show("VERSION")
        assert is_untouched(victim)
        links = [each for folder in folders for each in folder.iterdir() if each.is_symlink()]
        assert links == []


@needs_root
def test_the_server_account_may_only_change_the_data_of_a_root_stack(public: Path) -> None:
    with Stack() as up:
        folders = [path for path in up.folder.rglob("*") if path.is_dir() and not path.is_symlink()]
        outside = [each for each in folders if up.postgres.data not in (each, *each.parents)]
        for folder in [up.folder, *outside]:
            assert as_nobody("touch", folder / "mine").returncode, folder
            assert folder.stat().st_uid == os.getuid()
        assert up.postgres.data.stat().st_uid == account().uid


def test_symbolic_links_are_neither_chowned_nor_written_through(
    tmp_path: Path, victim: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(victim)
    somebody = Account(os.getuid(), os.getgid())
    with pytest.raises(OSError, match="symbolic links"):
        somebody.take_ownership(link, 0o644)
    somebody.write(link, "new")
    assert is_untouched(victim)
    assert link.read_text() == "new"


# --- Cleaning up abandoned stacks ----------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["lock", "x.process"])
def test_a_fifo_in_an_abandoned_stack_does_not_block_the_cleanup(public: Path, name: str) -> None:
    folder = public / f"{PREFIX}planted"
    folder.mkdir()
    if name != "lock":
        (folder / "lock").touch()
    os.mkfifo(folder / name)
    sweep()
    assert folder.exists() == (name == "lock")


@needs_root
@pytest.mark.timeout(20)
def test_a_stack_of_another_user_is_left_alone(public: Path, victim: Path) -> None:
    folder = public / f"{PREFIX}planted"
    as_nobody("mkdir", folder)
    as_nobody("mkfifo", folder / "lock")
    as_nobody("ln", "-s", victim.parent, public / f"{PREFIX}link")
    os.utime(folder, (0, 0))
    sweep()
    assert folder.exists()
    assert is_untouched(victim)


@needs_root
@pytest.mark.timeout(20)
def test_a_process_of_another_user_is_not_killed(public: Path) -> None:
    """With a symbolic link to a record, or a record in the data folder, which the servers own."""
    folder = public / f"{PREFIX}planted"
    (folder / "data").mkdir(parents=True)
    (folder / "lock").touch()
    account().take_ownership(folder / "data", 0o700)
    with subprocess.Popen(
        [sys.executable, "-c", "input()", folder], stdin=subprocess.PIPE
    ) as other:
        as_nobody("sh", "-c", f"echo {other.pid} 0 > {folder}/data/x.process")
        sweep()
        assert other.poll() is None
        other.communicate(b"\n")
    assert not folder.exists()


@pytest.mark.timeout(20)
def test_the_setup_lock_follows_no_link_and_blocks_on_no_fifo(tmp_path: Path, victim: Path) -> None:
    (tmp_path / "linked.lock").symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"), setup._locked(tmp_path / "linked"):
        pass
    assert is_untouched(victim)
    os.mkfifo(tmp_path / "fifo.lock")
    with setup._locked(tmp_path / "fifo"):
        pass


# --- The Runtime API -----------------------------------------------------------------------------

#: Changes the user after the imports: root's Python is not readable by everybody.
TAKE_EVENT = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[2]))
with socket.socket() as taking:
    taking.connect(("127.0.0.1", int(sys.argv[1])))
    taking.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.0\\r\\n\\r\\n")
    os.write(1, taking.recv(12))
"""


@needs_root
@pytest.mark.skipif(not peer.IS_SUPPORTED, reason="only Linux tells whose socket connects")
async def test_another_user_cannot_receive_events(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        await fleet.invoke(READ)
        [sandbox] = fleet.sandboxes
        words = [sys.executable, "-c", TAKE_EVENT, str(sandbox._api.port), str(account().uid)]
        taking = await asyncio.create_subprocess_exec(*words, stdout=asyncio.subprocess.PIPE)
        output, _ = await taking.communicate()
        assert output == b"HTTP/1.0 403"
        again = await fleet.invoke(READ)
    assert again.payload["statusCode"] == 200
    assert not again.cold


@pytest.mark.skipif(not peer.IS_SUPPORTED, reason="only Linux tells whose socket connects")
def test_our_own_connections_are_recognized() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        here = server.getsockname()
        with socket.create_connection(here) as client:
            assert peer.owner(client.getsockname(), here) == os.getuid()
            assert peer.owner(("127.0.0.1", 1), here) is None
            gone = client.getsockname()
        # The kernel lists a closed socket as root's, and the lab may run as root.
        assert peer.owner(gone, here) is None
