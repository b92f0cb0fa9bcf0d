"""Postgres' disk full: a small one of its own, which a file takes the rest of.

Owns that disk. Needs mounts of one's own, which come with a network of one's own.
"""

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
from tests.faults.breakages import Place

SIZE = "128m"
ANOTHER_FILE = "SELECT pg_logical_emit_message(true, '', ''), pg_switch_wal()"


@contextlib.contextmanager
def small_disk(stack: Stack) -> Iterator[Path]:
    """What Postgres stores is on a small disk for the time of the block, and what it stored in that
    time is forgotten after it."""
    assert network.is_own(), "it would be mounted for the whole machine"
    postgres = stack.postgres
    postgres.stop()
    kept = postgres.data.rename(postgres.data.with_name("kept"))
    postgres.data.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    path = str(postgres.data).encode()
    # Not by the program: it takes nobody but root.
    if libc.mount(b"tmpfs", path, b"tmpfs", 0, f"size={SIZE}".encode()):
        raise OSError(ctypes.get_errno(), "no disk can be mounted")
    try:
        postgres.account.own(postgres.data, 0o700)
        subprocess.run(["cp", "-a", f"{kept}/.", postgres.data], check=True)
        postgres.start()
        yield postgres.data
    finally:
        postgres.stop()
        libc.umount(path)
        postgres.data.rmdir()
        kept.rename(postgres.data)
        postgres.start()


def fill(disk: Path) -> Path:
    """Not a byte is free after it. The file that took them."""
    ballast = disk / "ballast"
    with ballast.open("ab", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return ballast


@asynccontextmanager
async def disk_full(place: Place) -> AsyncIterator[None]:
    ballast = fill(place.disk)
    yield
    ballast.unlink()


@asynccontextmanager
async def disk_full_of_log(place: Place) -> AsyncIterator[None]:
    """The log (WAL) finds no place for its next file either. Postgres crashes, and there is no room
    to recover in. Then it ends; or, in 16 of 88 runs, Postgres 18.4 is left without the
    process that recovers and never notices: it refuses every login ("not yet accepting
    connections") until it is shut down, room or no room. Either way somebody has to start it."""
    postgres, refused = place.stack.postgres, False
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(5):
            while postgres.alive:
                ballast = fill(place.disk)  # again: a crash gives back what was half written
                try:
                    admin = await place.connect_as_admin()
                    refused = False
                    while True:
                        await admin.execute(ANOTHER_FILE)
                except asyncpg.CannotConnectNowError:
                    refused = True
                except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
                    pass
                await asyncio.sleep(0.05)  # each refusal is a process that it has to start
    assert refused or not postgres.alive, "the log found room"
    yield
    ballast.unlink()
    await asyncio.to_thread(postgres.stop)
    await asyncio.to_thread(postgres.start)
