"""The temporary folder of a stack, and the removal of folders that killed runs left behind.

The owner holds a lock on a file in the folder, which the kernel releases when the process exits.
The servers' account may enter the folder, but change only Postgres' data. Because anyone may write
to /tmp, only regular files in our own folders are read.
"""

import contextlib
import errno
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import psutil

from infra.local import LabError
from infra.local.server import account, wait_until

PREFIX = "warm-engine-stack-"
#: For a cluster, its log and, sometimes for root, a copy of the binaries.
REQUIRED_BYTES = 200 * 2**20
VAR_TMP = Path("/var/tmp")  # noqa: S108  # only for mkdtemp


def _parents() -> list[Path]:
    return [path for path in (Path(tempfile.gettempdir()), VAR_TMP) if path.is_dir()]


def sweep() -> None:
    """Remove the stacks that killed runs left behind."""
    for parent in _parents():
        for folder in parent.glob(f"{PREFIX}*"):
            remove_abandoned(folder)


@contextlib.contextmanager
def private_directory() -> Iterator[Path]:
    """Create a folder for the block and remove it afterwards."""
    folder, lock = _create_locked(_first_with_space(_parents()))
    try:
        yield folder
    finally:
        _remove(folder)
        lock.close()


def _remove(folder: Path) -> None:
    def is_removed() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    wait_until(is_removed, 5)  # a killed program may still be writing


def _first_with_space(parents: list[Path]) -> Path:
    """Return the first folder with enough space that allows programs to be executed."""
    for path in parents:
        if is_usable(path, REQUIRED_BYTES):
            return path
    raise LabError(
        f"{' and '.join(map(str, parents))} must have {REQUIRED_BYTES >> 20} MiB free and allow "
        "programs to be executed. Free some space, or set TMPDIR to another folder"
    )


def is_usable(folder: Path, required_bytes: int) -> bool:
    """Return whether `folder` has that much free space and allows programs to be executed."""
    allows_programs = not os.statvfs(folder).f_flag & getattr(os, "ST_NOEXEC", 0)
    return allows_programs and shutil.disk_usage(folder).free >= required_bytes


def _create_locked(parent: Path) -> tuple[Path, IO[str]]:
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        account().let_in(folder)
        lock = os.fdopen(os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600), "w")
        with contextlib.suppress(OSError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if (folder / "lock").stat().st_ino == os.fstat(lock.fileno()).st_ino:
                return folder, lock
        lock.close()  # another run has removed it as abandoned


def is_up(folder: Path) -> bool:
    """Return whether the owner of the stack in that folder is running."""
    try:
        with _open_regular(folder / "lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return False
    except BlockingIOError:
        return True
    except OSError:
        return False


def remove_abandoned(folder: Path) -> None:
    """Remove a stack whose owner was killed: its servers, then its folder, if both are ours."""
    if not _is_ours(folder):
        return
    try:
        lock = _open_regular(folder / "lock")
    except FileNotFoundError:
        # The folder is being created or removed, or its owner was killed in the middle of that.
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
        abandoned = []
        # PgBouncers have a folder of their own.
        for record in (*folder.glob("*.process"), *folder.glob("pgbouncer-*/*.process")):
            with contextlib.suppress(psutil.Error, ValueError, OSError):
                with _open_regular(record) as file:
                    pid, created = file.read(100).split()
                process = psutil.Process(int(pid))
                if (
                    process.create_time() == float(created)
                    and process.uids().real == account().uid
                    and any(str(folder) in word for word in process.cmdline())
                ):
                    abandoned += [process, *process.children(recursive=True)]
        for process in abandoned:
            with contextlib.suppress(psutil.Error):
                process.kill()
        wait_until(lambda: all(map(_has_exited, abandoned)), 5)
        _remove(folder)


def _is_ours(folder: Path) -> bool:
    """Return whether it is a folder of the current user, and not a link."""
    try:
        status = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()


def _open_regular(path: Path) -> IO[str]:
    """Open `path` if it is a regular file of ours and not, for example, a FIFO or a link.

    Raises OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode) or status.st_uid not in (os.getuid(), account().uid):
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "not a regular file of ours", str(path))
    return os.fdopen(descriptor)


def _has_exited(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # not yet reaped
    except psutil.NoSuchProcess:
        return True
