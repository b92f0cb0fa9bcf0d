"""A sandbox that shuts down leaves nothing on PgBouncer or Postgres, and exits in time."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from infra.database.roles import APP
from infra.local.fleet import Fleet
from infra.local.fleet.runtime_api import RuntimeApi
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from tests.conftest import app_clients, command, eventually, log_lines, wait_for_queries
from tests.events import http_api


def logged_closes(bouncer: PgBouncer) -> list[str]:
    """Return PgBouncer's log messages of how each client of the application closed."""
    lines = [line for line in bouncer.log_since_start().splitlines() if f"/{APP}@" in line]
    return [line.partition("closing because: ")[2][:20] for line in lines if "closing" in line]


async def exits_by_itself(fleet: Fleet) -> bool:
    """End the only sandbox; return whether it exits before the SIGKILL, 500 ms after SIGTERM."""
    [sandbox] = fleet.sandboxes
    await sandbox.end()
    return sandbox.exit_status == 0


async def test_idle_sandboxes_close_their_connections(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        for number in range(5):
            async with Fleet(stack.environment(bouncer)) as fleet:
                result = await fleet.invoke(http_api("GET", "/orders/1"))
                assert result.payload["statusCode"] == 200
                assert len(app_clients(bouncer)) == 1
                assert await exits_by_itself(fleet), number
            eventually(lambda: not app_clients(bouncer))
        assert logged_closes(bouncer) == ["client close request"] * 5


async def test_a_sandbox_that_never_connected_exits_as_well(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        await fleet.invoke(http_api("GET", "/health"))
        assert await exits_by_itself(fleet)


async def test_shutdown_cancels_a_running_query(
    stack: Stack, admin: Any, locker: Any, tmp_path: Path
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            async with locker.transaction():
                await locker.execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
                invocation = asyncio.create_task(fleet.invoke(http_api("GET", "/orders/1")))
                await wait_for_queries(admin, 1)
                assert await exits_by_itself(fleet)
                await wait_for_queries(admin, 0)  # although the lock is still held
            await asyncio.wait_for(invocation, 5)
        eventually(lambda: not app_clients(bouncer))
        assert "client unexpected eof" not in logged_closes(bouncer)
    log = (tmp_path / "sandbox-1.log").read_text()
    assert [line["outcome"] for line in log_lines(log)] == ["ok", "cancelled"]
    assert "Traceback" not in log


async def test_shutdown_finishes_in_time_when_pgbouncer_does_not_respond(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        assert bouncer.process is not None
        async with Fleet(stack.environment(bouncer)) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            os.kill(bouncer.process.pid, signal.SIGSTOP)
            try:
                assert await exits_by_itself(fleet)
            finally:
                os.kill(bouncer.process.pid, signal.SIGCONT)


async def test_a_second_process_that_cannot_register_the_extension_works(
    stack: Stack, tmp_path: Path
) -> None:
    """On Managed Instances several processes share one environment."""
    async with Fleet(stack.environment(), logs=tmp_path) as fleet:
        await fleet.invoke(http_api("GET", "/health"))
        [first] = fleet.sandboxes
        second = command(
            "-c",
            "from handler.main import handler; print(handler({'source': 'aws.events'}, None))",
            env=stack.environment() | {"AWS_LAMBDA_RUNTIME_API": first._api.address},
        )
        output, _ = await asyncio.to_thread(second.communicate, timeout=30)
        assert "'warm': True" in output
        assert second.returncode == 0


def test_the_signal_handler_is_unchanged_outside_lambda(stack: Stack) -> None:
    process = command(
        "-c",
        "import handler.main, signal; print(signal.getsignal(signal.SIGTERM) is signal.SIG_DFL)",
        env=stack.environment(),
    )
    assert process.communicate(timeout=30)[0] == "True\n"


async def test_the_init_phase_waits_for_a_slow_extensions_api(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that registers but does not wait for events would never end the init phase."""
    original_register = RuntimeApi._register

    async def register_slowly(self: RuntimeApi, request: Any) -> Any:
        response = await original_register(self, request)
        await asyncio.sleep(3)
        return response

    monkeypatch.setattr(RuntimeApi, "_register", register_slowly)
    monkeypatch.setattr("infra.local.fleet.sandbox.INIT_SECONDS", 20)
    async with Fleet(stack.environment()) as fleet:
        assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200
        assert await exits_by_itself(fleet)
