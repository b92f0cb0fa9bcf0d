"""Under AWS's own emulator, the sandbox survives a 504 and shuts down cleanly."""

import asyncio
import os
import signal
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

from infra.database.roles import APP
from infra.local.stack import Stack
from tests.conftest import app_clients, eventually, wait_for_queries
from tests.events import http_api
from tests.runtime.emulator import Emulator, emulator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the emulator runs on Linux only")

READ = http_api("GET", "/orders/1")


def test_shutdown_closes_the_connection_and_takes_about_300_ms(
    stack: Stack, tmp_path: Path
) -> None:
    durations = []
    with stack.another_pgbouncer() as bouncer:
        for number in range(10):
            with emulator(stack.environment(bouncer), tmp_path / f"{number}.log") as sandbox:
                assert sandbox.invoke(READ)["statusCode"] == 200
                assert len(app_clients(bouncer)) == 1
                durations.append(sandbox.shut_down())
                eventually(lambda: not app_clients(bouncer))
        output = bouncer.log_since_start()
        assert output.count(f"/{APP}@127.0.0.1") >= 10
        assert output.count("closing because: client close request") >= 10
        assert "client unexpected eof" not in output
    median, longest = statistics.median(durations), max(durations)
    print(f"exited after {median * 1000:.0f} ms (median), {longest * 1000:.0f} ms (longest)")
    assert median <= 0.3, durations
    assert longest < 0.6, durations  # below the time after which the emulator kills the process


async def test_shutdown_cancels_a_running_query(
    stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> None:
    def invoke_until_exit(sandbox: Emulator) -> Any:
        try:
            return sandbox.invoke(READ)
        except OSError:
            return None  # the emulator has exited

    with emulator(stack.environment(), tmp_path / "log") as sandbox:
        assert (await asyncio.to_thread(sandbox.invoke, READ))["statusCode"] == 200
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            invocation = asyncio.create_task(asyncio.to_thread(invoke_until_exit, sandbox))
            await wait_for_queries(admin, 1)
            assert await asyncio.to_thread(sandbox.shut_down) <= 0.5
            await wait_for_queries(admin, 0)  # even though the lock is still held
        await invocation


def test_shutdown_finishes_in_time_when_pgbouncer_does_not_respond(
    stack: Stack, tmp_path: Path
) -> None:
    with stack.another_pgbouncer() as bouncer:
        assert bouncer.process is not None
        with emulator(stack.environment(bouncer), tmp_path / "log") as sandbox:
            sandbox.invoke(READ)
            os.kill(bouncer.process.pid, signal.SIGSTOP)
            try:
                # SHUTDOWN_TIMEOUT and the exit, polled every 10 ms.
                assert sandbox.shut_down() <= 0.45
            finally:
                os.kill(bouncer.process.pid, signal.SIGCONT)


async def test_a_504_does_not_end_the_sandbox(stack: Stack, locker: Any, tmp_path: Path) -> None:
    with emulator(stack.environment(), tmp_path / "log", seconds=4) as sandbox:
        await asyncio.to_thread(sandbox.invoke, READ)
        pid = sandbox.runtime.pid
        async with locker.transaction():
            await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
            assert (await asyncio.to_thread(sandbox.invoke, READ))["statusCode"] == 504
        response = await asyncio.to_thread(sandbox.invoke, READ)
        assert (response["statusCode"], sandbox.runtime.pid) == (200, pid)
