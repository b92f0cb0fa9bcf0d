"""Fault injectors that fill Postgres' disk, a small tmpfs. They need a mount namespace."""

import asyncio
import contextlib
import ctypes
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from infra.local import network
from infra.local.stack import Stack
from tests.faults.injectors import SystemUnderTest

DISK_SIZE = "128m"
SWITCH_WAL = "SELECT pg_logical_emit_message(true, '', ''), pg_switch_wal()"


@contextlib.contextmanager
def small_disk(stack: Stack) -> Iterator[Path]:
    """Copy Postgres' data to a small disk, and discard that copy when the block ends."""
    assert network.is_isolated(), "the disk would be mounted for the whole machine"
    postgres = stack.postgres
    postgres.stop()
    original_data = postgres.data.rename(postgres.data.with_name("kept"))
    postgres.data.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    path = str(postgres.data).encode()
    # Not pg_ctl or postgres itself: both refuse to run as root.
    if libc.mount(b"tmpfs", path, b"tmpfs", 0, f"size={DISK_SIZE}".encode()):
        raise OSError(ctypes.get_errno(), "no disk can be mounted")
    try:
        postgres.account.take_ownership(postgres.data, 0o700)
        subprocess.run(["cp", "-a", f"{original_data}/.", postgres.data], check=True)
        postgres.start()
        yield postgres.data
    finally:
        postgres.stop()
        libc.umount(path)
        postgres.data.rmdir()
        original_data.rename(postgres.data)
        postgres.start()


def fill(disk: Path) -> Path:
    """Fill the disk to the last byte with one file, and return that file."""
    filler = disk / "filler"
    with filler.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return filler


@asynccontextmanager
async def disk_full(system: SystemUnderTest) -> AsyncIterator[None]:
    filler = fill(system.disk)
    yield
    filler.unlink()


@asynccontextmanager
async def disk_full_of_log(system: SystemUnderTest) -> AsyncIterator[None]:
    """Leave no room for the next WAL segment either.

    Postgres crashes and cannot recover. It then exits or, in 16 of 88 runs with 18.4, stays up
    without its startup process and rejects every login ("not yet accepting connections") even when
    there is room again. Either way it has to be restarted.
    """
    postgres, rejects_logins = system.stack.postgres, False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while postgres.alive:
                filler = fill(system.disk)  # in every round: a crash frees partly written files
                try:
                    admin = await system.connect_as_admin()
                    rejects_logins = False
                    while True:
                        await admin.execute(SWITCH_WAL)
                except asyncpg.CannotConnectNowError:
                    rejects_logins = True
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    pass
                await asyncio.sleep(0.05)  # each rejected login costs Postgres a process
    assert rejects_logins or not postgres.alive, "Postgres still writes its log"
    yield
    filler.unlink()
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
