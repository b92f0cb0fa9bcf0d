"""Another user of the machine cannot harm the lab, especially not the lab of root."""

import asyncio
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local import private_directory, setup
from infra.local.fleet import Fleet, peer
from infra.local.private_directory import PREFIX, sweep
from infra.local.server import Account, account
from infra.local.stack import Stack
from tests.conftest import needs_root
from tests.integration.conftest import stack_folder
from tests.integration.failing_fleet import READ

SECRET = "root's own\n"


@pytest.fixture
def public_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """Create a world-writable folder like /tmp for the stacks of a test."""
    with stack_folder(0o1777, monkeypatch, tmp_path_factory) as folder:
        monkeypatch.setattr(private_directory, "VAR_TMP", Path("/nowhere"))
        yield folder


@pytest.fixture
def secret_file(tmp_path: Path) -> Path:
    path = tmp_path / "victim"
    path.write_text(SECRET)
    path.chmod(0o600)
    return path


def is_untouched(path: Path) -> bool:
    status = path.stat()
    owner_and_mode = (status.st_uid, stat.S_IMODE(status.st_mode))
    return owner_and_mode == (os.getuid(), 0o600) and path.read_text() == SECRET


def as_nobody(*words: str | Path) -> "subprocess.CompletedProcess[str]":
    options = account().popen_options
    return subprocess.run(words, capture_output=True, text=True, **options)  # type: ignore[call-overload,no-any-return]  # user, group: see Account


# --- Files that root opens, writes and changes the owner of --------------------------------------


@needs_root
def test_root_follows_no_symbolic_link_of_the_server_account(
    public_folder: Path, secret_file: Path
) -> None:
    """The links have all names that root opens, changes or chowns when it starts a server."""
    with Stack() as stack:
        folders = [stack.folder, stack.pgbouncer.folder]
        for folder in folders:
            for name in ("ca.pem", "Postgres.log", "PgBouncer.log", "site.ini", "new", "x.process"):
                as_nobody("ln", "-sfn", secret_file, folder / name)
                as_nobody("mkfifo", folder / f"fifo-{name}")
        stack.pgbouncer.stop()
        stack.postgres.stop()
        stack.postgres.start()
        stack.pgbouncer.start()
        assert stack.pgbouncer.show("VERSION")
        assert is_untouched(secret_file)
        assert [path for folder in folders for path in folder.iterdir() if path.is_symlink()] == []


@needs_root
def test_the_server_account_may_only_change_the_data_of_a_root_stack(public_folder: Path) -> None:
    with Stack() as stack:
        folders = [
            path for path in stack.folder.rglob("*") if path.is_dir() and not path.is_symlink()
        ]
        data = stack.postgres.data
        outside_data = [folder for folder in folders if data not in (folder, *folder.parents)]
        for folder in [stack.folder, *outside_data]:
            assert as_nobody("touch", folder / "mine").returncode, folder
            assert folder.stat().st_uid == os.getuid()
        assert data.stat().st_uid == account().uid


def test_symbolic_links_are_neither_chowned_nor_written_through(
    tmp_path: Path, secret_file: Path
) -> None:
    link = tmp_path / "link"
    link.symlink_to(secret_file)
    current_account = Account(os.getuid(), os.getgid())
    with pytest.raises(OSError, match="symbolic links"):
        current_account.take_ownership(link, 0o644)
    current_account.write(link, "new")
    assert is_untouched(secret_file)
    assert link.read_text() == "new"


# --- Cleaning up abandoned stacks ----------------------------------------------------------------


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["lock", "x.process"])
def test_a_fifo_in_an_abandoned_stack_does_not_block_the_cleanup(
    public_folder: Path, name: str
) -> None:
    folder = public_folder / f"{PREFIX}planted"
    folder.mkdir()
    if name != "lock":
        (folder / "lock").touch()
    os.mkfifo(folder / name)
    sweep()
    assert folder.exists() == (name == "lock")


@needs_root
@pytest.mark.timeout(20)
def test_a_stack_of_another_user_is_not_removed(public_folder: Path, secret_file: Path) -> None:
    folder = public_folder / f"{PREFIX}planted"
    as_nobody("mkdir", folder)
    as_nobody("mkfifo", folder / "lock")
    as_nobody("ln", "-s", secret_file.parent, public_folder / f"{PREFIX}link")
    os.utime(folder, (0, 0))
    sweep()
    assert folder.exists()
    assert is_untouched(secret_file)


@needs_root
@pytest.mark.timeout(20)
def test_a_process_of_another_user_is_not_killed(public_folder: Path) -> None:
    """A record in the data folder, which the servers' account owns, must not be trusted."""
    folder = public_folder / f"{PREFIX}planted"
    (folder / "data").mkdir(parents=True)
    (folder / "lock").touch()
    account().take_ownership(folder / "data", 0o700)
    with subprocess.Popen(
        [sys.executable, "-c", "input()", folder], stdin=subprocess.PIPE
    ) as process:
        as_nobody("sh", "-c", f"echo {process.pid} 0 > {folder}/data/x.process")
        sweep()
        assert process.poll() is None
        process.communicate(b"\n")
    assert not folder.exists()


@pytest.mark.timeout(20)
def test_the_setup_lock_follows_no_link_and_blocks_on_no_fifo(
    tmp_path: Path, secret_file: Path
) -> None:
    (tmp_path / "linked.lock").symlink_to(secret_file)
    with pytest.raises(OSError, match="symbolic links"), setup._locked(tmp_path / "linked"):
        pass
    assert is_untouched(secret_file)
    os.mkfifo(tmp_path / "fifo.lock")
    with setup._locked(tmp_path / "fifo"):
        pass


# --- The Runtime API -----------------------------------------------------------------------------

#: Changes the user only after the imports, because not every user can read root's Python.
TAKE_EVENT = """
import os, socket, sys
os.setgroups([])
os.setuid(int(sys.argv[2]))
with socket.socket() as client:
    client.connect(("127.0.0.1", int(sys.argv[1])))
    client.sendall(b"GET /2018-06-01/runtime/invocation/next HTTP/1.0\\r\\n\\r\\n")
    os.write(1, client.recv(12))
"""


@needs_root
@pytest.mark.skipif(not peer.IS_SUPPORTED, reason="only Linux reports the owner of a socket")
async def test_another_user_cannot_receive_events(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        await fleet.invoke(READ)
        [sandbox] = fleet.sandboxes
        command = [sys.executable, "-c", TAKE_EVENT, str(sandbox._api.port), str(account().uid)]
        process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        assert output == b"HTTP/1.0 403"
        result = await fleet.invoke(READ)
    assert result.payload["statusCode"] == 200
    assert not result.cold


@pytest.mark.skipif(not peer.IS_SUPPORTED, reason="only Linux reports the owner of a socket")
def test_connections_of_the_same_user_are_recognized() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = server.getsockname()
        with socket.create_connection(address) as client:
            assert peer.owner(client.getsockname(), address) == os.getuid()
            assert peer.owner(("127.0.0.1", 1), address) is None
            closed = client.getsockname()
        # The kernel lists a closed socket as root's, and the lab may run as root.
        assert peer.owner(closed, address) is None
