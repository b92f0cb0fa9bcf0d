"""The private folder that a stack lives in, and that no stack outlives.

Owns making it where servers can run from it, telling whether its owner lives, and taking away what
the killed left. The owner holds a lock on a file in it, which the kernel gives up when a process
dies, however it died; a process number that came round again cannot fool it.
"""

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from infra.local import LabError
from infra.local.server import account, wait_until

PREFIX = "warm-engine-stack-"
#: A cluster, its log and, for root, a copy of the binaries, in bytes.
ROOM = 200 * 2**20
VAR_TMP = Path("/var/tmp")  # noqa: S108  # mkdtemp makes a private folder in it


@contextlib.contextmanager
def private_folder() -> Iterator[Path]:
    """A folder for one stack, gone after the block. Sweeps up first what killed runs left."""
    parents = [path for path in (Path(tempfile.gettempdir()), VAR_TMP) if path.is_dir()]
    for parent in parents:
        for left in parent.glob(f"{PREFIX}*"):
            sweep(left)
    folder, lock = _claim(_roomy(parents))
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def _remove(folder: Path) -> None:
    def gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(gone, 5)  # a program that was killed on the way may still be writing


def _roomy(parents: list[Path]) -> Path:
    """The first with room, where the account that the servers run as may execute programs."""
    for path in parents:
        programs = not os.statvfs(path).f_flag & getattr(os, "ST_NOEXEC", 0)
        if programs and shutil.disk_usage(path).free >= ROOM:
            return path
    raise LabError(
        f"{ROOM >> 20} MiB free in a folder that may hold programs are needed, and "
        f"{' and '.join(map(str, parents))} lack them. Make room, or set TMPDIR to another"
    )


def _claim(parent: Path) -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        account().own(folder, 0o700)
        lock = (folder / "lock").open("w")
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return folder, lock
        lock.close()  # a sweep came in between and took it for left behind


def is_up(folder: Path) -> bool:
    """Whether the stack of that folder has an owner that lives."""
    try:
        with (folder / "lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def sweep(folder: Path) -> None:
    """Take away a stack whose owner was killed: its servers, then its folder. Only one of our own,
    and of its processes only those that are servers in it: anybody may write into /tmp."""
    with contextlib.suppress(OSError):
        if folder.lstat().st_uid not in (os.getuid(), account().uid):
            return
    try:
        lock = (folder / "lock").open("r+")
    except FileNotFoundError:
        # Being made at this moment, or taken away; or by who was killed at such a moment.
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > 60:
                shutil.rmtree(folder)
        return
    except OSError:
        return  # another user's
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return
        left = []
        for record in folder.rglob("*.process"):
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                pid, created = record.read_text().split()
                process = psutil.Process(int(pid))
                if (
                    process.create_time() == float(created)
                    and process.uids().real == account().uid
                    and any(str(folder) in word for word in process.cmdline())
                ):
                    left += [process, *process.children(recursive=True)]
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_until(lambda: all(map(_ended, left)), 5)
        _remove(folder)


def _ended(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # init may take its time
    except psutil.NoSuchProcess:
        return True
