"""Each leak is counted once, and a response is checked against the scenario's deadline."""

import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from tests.faults import report
from tests.faults.injectors import SystemUnderTest
from tests.faults.measurement import assert_expectations, number_of_leaks
from tests.faults.scenarios import Scenario

MEASUREMENT = report.Measurement("fault", 10, 10, 8, 8, 0, 4.0, 0.0, "", 5, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("sockets", "clients", "servers", "servers_in_use", "backends", "leaks"),
    [
        ([1, 1], 2, 2, 0, 2, 0),
        ([1, 2], 3, 3, 1, 3, 1),  # one connection: a socket, a client and a server in use
        ([0, 1], 1, 1, 0, 1, 1),
        ([1, 1], 4, 2, 0, 2, 2),
        ([], 0, 1, 0, 2, 1),
        ([1, 1], 2, 2, 0, 1, 0),  # a backend that is still starting
    ],
)
def test_a_leaked_connection_is_counted_once(
    sockets: list[int], clients: int, servers: int, servers_in_use: int, backends: int, leaks: int
) -> None:
    counted = number_of_leaks(
        sockets, clients=clients, servers=servers, servers_in_use=servers_in_use, backends=backends
    )
    assert counted == leaks


@contextlib.asynccontextmanager
async def no_fault(_: SystemUnderTest) -> AsyncIterator[None]:
    yield


@pytest.mark.parametrize("check_rates", [True, False])
def test_a_response_after_the_deadline_of_the_scenario_fails(check_rates: bool) -> None:
    scenario = Scenario("fault", no_fault, deadline=3)
    with pytest.raises(AssertionError, match="max_latency_s"):
        assert_expectations(scenario, MEASUREMENT, check_rates=check_rates)
    assert_expectations(replace(scenario, deadline=5), MEASUREMENT, check_rates=check_rates)
    slow = replace(MEASUREMENT, max_latency_s=12.0)
    assert_expectations(replace(scenario, deadline=20), slow, check_rates=check_rates)
