"""A sandbox that Lambda freezes between two invocations costs no caller anything, whatever happens
to its connection meanwhile."""

import asyncio
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.local.fleet import Fleet
from infra.local.network import Filter
from infra.local.stack import Stack
from infra.local.wire import Relay
from tests.conftest import log_lines
from tests.events import http_api
from tests.own_network import in_own_network

READ = http_api("GET", "/orders/1")


async def frozen(fleet: Fleet) -> None:
    """Until the only sandbox is."""
    [sandbox] = fleet.sandboxes
    async with asyncio.timeout(5):
        while not sandbox.frozen:  # noqa: ASYNC110  # it rings no bell
            await asyncio.sleep(0.005)


async def closed_for_idleness(bouncer: Any) -> None:
    async with asyncio.timeout(10):
        while "client_idle_timeout" not in bouncer.said():  # noqa: ASYNC110  # its own clock
            await asyncio.sleep(0.02)


async def test_between_two_invocations_a_sandbox_stands_still(stack: Stack) -> None:
    async with Fleet(stack.environment()) as fleet:
        for _ in range(3):
            answer = await fleet.invoke(READ)
            await frozen(fleet)
            assert psutil.Process(answer.pid).status() == psutil.STATUS_STOPPED
            assert answer.payload["statusCode"] == 200


async def test_freezing_and_thawing_cost_no_round_trip(stack: Stack) -> None:
    with Relay(stack.pgbouncer.host, stack.pgbouncer.port) as relay:
        async with Fleet(stack.environment() | {"DB_PORT": str(relay.port)}) as fleet:
            await fleet.invoke(READ)
            relay.reset()
            for _ in range(10):
                await frozen(fleet)
                await fleet.invoke(READ)
            assert (relay.round_trips, relay.connections) == (10, 0)


async def test_a_frozen_sandbox_is_thawed_to_say_goodbye(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            await fleet.invoke(READ)
            await frozen(fleet)
            [sandbox] = fleet.sandboxes
            await sandbox.end()
            assert sandbox.exit_status == 0
        assert "client close request" in bouncer.said()
        assert "unexpected eof" not in bouncer.said()


async def test_a_process_frozen_past_pgbouncer_s_idle_limit_costs_no_try(
    stack: Stack, tmp_path: Path
) -> None:
    """The weaker freeze: its kernel took the FIN, and the poll at checkout sees it."""
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        async with Fleet(stack.environment(bouncer), logs=tmp_path) as fleet:
            await fleet.invoke(READ)
            await closed_for_idleness(bouncer)
            answer = await fleet.invoke(READ)
            assert (answer.payload["statusCode"], answer.cold) == (200, False)
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == 1


@in_own_network
@pytest.mark.parametrize(("max_idle", "attempts"), [("240", 2), ("0.9", 1)])
async def test_a_sandbox_cut_off_past_pgbouncer_s_idle_limit_costs_one_try_at_most(
    stack: Stack, tmp_path: Path, max_idle: str, attempts: int
) -> None:
    """The hard freeze: nobody took the FIN, the socket looks healthy, and the first send is
    answered with a reset. Past DB_MAX_IDLE nothing is sent on it at all."""
    with stack.another_pgbouncer(settings={"client_idle_timeout": 1}) as bouncer:
        environment = stack.environment(bouncer) | {"DB_MAX_IDLE": max_idle}
        async with Fleet(environment, logs=tmp_path, packet_filter=Filter()) as fleet:
            first = await fleet.invoke(READ)
            await closed_for_idleness(bouncer)
            answer = await fleet.invoke(READ)
            assert (answer.payload["statusCode"], answer.pid) == (200, first.pid)
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == attempts


@in_own_network
async def test_a_sandbox_cut_off_and_thawed_in_time_keeps_its_connection(
    stack: Stack, tmp_path: Path
) -> None:
    async with Fleet(stack.environment(), logs=tmp_path, packet_filter=Filter()) as fleet:
        for _ in range(5):
            assert (await fleet.invoke(READ)).payload["statusCode"] == 200
            await frozen(fleet)
    warm = log_lines((tmp_path / "sandbox-1.log").read_text())[1:]
    assert [(line["attempts"], line["connect_ms"]) for line in warm] == [(1, 0)] * 4


@in_own_network
async def test_a_server_gone_without_a_word_costs_three_seconds_and_one_try(
    stack: Stack, tmp_path: Path
) -> None:
    """TCP_USER_TIMEOUT: nobody acknowledges what is sent, and nobody says that it is in vain."""
    dark = Filter()
    with Relay(stack.pgbouncer.host, stack.pgbouncer.port) as relay:
        environment = stack.environment() | {"DB_PORT": str(relay.port)}
        async with Fleet(environment, logs=tmp_path) as fleet:
            first = await fleet.invoke(READ)
            [sandbox] = fleet.sandboxes
            dark.silence(sandbox.connections())
            answer = await fleet.invoke(READ)
            assert (answer.payload["statusCode"], answer.pid) == (200, first.pid)
            assert 2 < answer.ms / 1000 < 6
    assert log_lines((tmp_path / "sandbox-1.log").read_text())[-1]["attempts"] == 2
