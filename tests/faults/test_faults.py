"""Under every fault no write is lost or duplicated, nothing leaks, and the service recovers."""

import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from infra.local import service
from infra.local.stack import Stack
from tests.faults.measurement import assert_expectations, measure
from tests.faults.report import DURATION_VARIABLE, PROPERTY
from tests.faults.scenarios import ISOLATED_SCENARIOS, SCENARIOS, Scenario
from tests.network_namespace import in_network_namespace

#: `make faults` sets a longer duration.
FAULT_SECONDS = float(os.environ.get(DURATION_VARIABLE, "2"))


@pytest.fixture(scope="module")
def faulty_stack() -> Iterator[Stack]:
    """Share one stack, because every fault is undone. `make faults ROOT=…` selects its service."""
    root = os.environ.get("ROOT")
    with Stack(service=service.find(Path(root) if root else None)) as stack:
        yield stack


def has_boto3(python: str) -> bool:
    return subprocess.run([python, "-c", "import boto3"], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    "scenario",
    [
        *(pytest.param(scenario, id=scenario.id) for scenario in SCENARIOS),
        *(
            pytest.param(scenario, id=scenario.id, marks=in_network_namespace)
            for scenario in ISOLATED_SCENARIOS
        ),
    ],
)
async def test_no_write_is_lost_and_the_service_recovers_in_time(
    scenario: Scenario,
    faulty_stack: Stack,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    if scenario.setup.secret_store and not has_boto3(faulty_stack.service.python):
        pytest.skip("the service has no boto3, which DB_AUTH=secret requires")
    measurement = await measure(scenario, faulty_stack, tmp_path, FAULT_SECONDS)
    record_property(PROPERTY, asdict(measurement))
    assert_expectations(scenario, measurement)
