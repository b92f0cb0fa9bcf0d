"""Freezing a sandbox between invocations fails no request, whatever happens to its connection."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.local.fleet import Ending, Fleet
from infra.local.network import Filter
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import eventually, log_lines
from tests.events import http_api
from tests.network_namespace import in_network_namespace

READ = http_api("GET", "/orders/1")


async def wait_until_frozen(fleet: Fleet) -> None:
    """Wait until the only sandbox is frozen."""
    [sandbox] = fleet.sandboxes
    await asyncio.to_thread(eventually, lambda: sandbox.frozen, 5)


async def wait_until_stopped(pid: int) -> None:
    """Wait for the kernel, which stops a process some time after it was sent the signal."""
    process = psutil.Process(pid)
    await asyncio.to_thread(eventually, lambda: process.status() == psutil.STATUS_STOPPED, 5)


async def wait_for_idle_timeout(bouncer: Any) -> None:
    await asyncio.to_thread(eventually, lambda: "client_idle_timeout" in bouncer.log_since_start())


async def test_a_sandbox_is_frozen_between_invocations(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        for _ in range(3):
            result = await fleet.invoke(READ)
            await wait_until_frozen(fleet)
            await wait_until_stopped(result.pid)
            assert result.payload["statusCode"] == 200


async def test_a_sandbox_that_is_killed_before_it_freezes_leaves_no_task(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    never = asyncio.Event()
    monkeypatch.setattr(never, "set", lambda: None)
    async with Fleet(stack.environment()) as fleet:
        await fleet.invoke(READ)
        [sandbox] = fleet.sandboxes
        monkeypatch.setattr(sandbox._api, "parked", never)  # it does not ask for the next event
        await sandbox.end(Ending.KILL)
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_freezing_and_thawing_add_no_round_trip(stack: Stack) -> None:
    with TcpProxy(stack.pgbouncer.host, stack.pgbouncer.port) as proxy:
        async with Fleet(stack.environment() | {"DB_PORT": str(proxy.port)}) as fleet:
            await fleet.invoke(READ)
            proxy.reset_counters()
            for _ in range(10):
                await wait_until_frozen(fleet)
                await fleet.invoke(READ)
            assert (proxy.round_trips, proxy.connections) == (10, 0)


async def test_a_frozen_sandbox_is_thawed_to_shut_down(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            await fleet.invoke(READ)
            await wait_until_frozen(fleet)
            [sandbox] = fleet.sandboxes
            await sandbox.end()
            assert sandbox.exit_status == 0
        assert "client close request" in bouncer.log_since_start()
        assert "unexpected eof" not in bouncer.log_since_start()


async def test_a_frozen_process_past_client_idle_timeout_needs_no_retry(
    stack: Stack, tmp_path: Path
) -> None:
    """Only the process is frozen: the kernel receives the FIN, and the poll at checkout sees it."""
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            await fleet.invoke(READ)
            await wait_for_idle_timeout(bouncer)
            result = await fleet.invoke(READ)
            assert (result.payload["statusCode"], result.cold) == (200, False)
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == 1


@in_network_namespace
@pytest.mark.parametrize(("max_idle", "attempts"), [("240", 2), ("0.9", 1)])
async def test_a_disconnected_sandbox_past_client_idle_timeout_needs_one_retry_at_most(
    stack: Stack, tmp_path: Path, max_idle: str, attempts: int
) -> None:
    """The FIN is dropped, so the socket looks healthy, and a reset follows the first packet.

    Past DB_MAX_IDLE the connection is not used again.
    """
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        environment = stack.environment(bouncer) | {"DB_MAX_IDLE": max_idle}
        async with Fleet(environment, logs=tmp_path, packet_filter=Filter()) as fleet:
            first = await fleet.invoke(READ)
            await wait_for_idle_timeout(bouncer)
            result = await fleet.invoke(READ)
            assert (result.payload["statusCode"], result.pid) == (200, first.pid)
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == attempts


@in_network_namespace
async def test_a_disconnected_sandbox_thawed_in_time_keeps_its_connection(
    stack: Stack, tmp_path: Path
) -> None:
    async with Fleet(stack.environment(), logs=tmp_path, packet_filter=Filter()) as fleet:
        for _ in range(5):
            assert (await fleet.invoke(READ)).payload["statusCode"] == 200
            await wait_until_frozen(fleet)
    warm_lines = log_lines((tmp_path / "sandbox-1.log").read_text())[1:]
    assert [(line["attempts"], line["connectMs"]) for line in warm_lines] == [(1, 0)] * 4


@in_network_namespace
async def test_a_server_that_vanished_costs_three_seconds_and_one_retry(
    stack: Stack, tmp_path: Path
) -> None:
    """Packets are not acknowledged, so only TCP_USER_TIMEOUT reports the failure."""
    packet_filter = Filter()
    with TcpProxy(stack.pgbouncer.host, stack.pgbouncer.port) as proxy:
        environment = stack.environment() | {"DB_PORT": str(proxy.port)}
        async with Fleet(environment, logs=tmp_path) as fleet:
            first = await fleet.invoke(READ)
            [sandbox] = fleet.sandboxes
            packet_filter.drop(sandbox.connections())
            result = await fleet.invoke(READ)
            assert (result.payload["statusCode"], result.pid) == (200, first.pid)
            assert 2 < result.ms / 1000 < 6
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == 2
