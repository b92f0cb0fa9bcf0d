"""The handler has every property, and without one of them lacks exactly that one."""

import os
from collections.abc import Iterator
from unittest import mock

import pytest

from infra.local import network
from infra.local.examine import cold_start
from infra.local.examine.command import measure
from infra.local.examine.finding import Verdict
from infra.local.examine.inputs import Inputs
from infra.local.examine.properties import PROPERTIES

#: Twenty minutes of it: otherwise each mutant is only measured for what it lacks.
EVERY_PROPERTY = "EVERY_PROPERTY" in os.environ
NO_FILTER = None if network.is_isolated() else "the test runs outside of such a network"


@pytest.fixture(autouse=True)
def short_init_limit() -> Iterator[None]:
    with mock.patch.object(cold_start, "INIT_LIMIT_S", 2.0):
        yield


def verdicts(handler: str, wanted: tuple[str, ...]) -> dict[str, Verdict]:
    findings, _ = measure(Inputs(handler=handler, wanted=wanted, fast=True), NO_FILTER)
    print(findings)
    return {name: found.verdict for name, found in findings.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_handler_without_a_property_lacks_exactly_that_one(name: str) -> None:
    wanted = tuple(PROPERTIES) if EVERY_PROPERTY else (name,)
    found = verdicts(f"tests.examine.mutants.{name}", wanted)
    assert [each for each, verdict in found.items() if verdict is Verdict.NO] == [name]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not EVERY_PROPERTY, reason="EVERY_PROPERTY=1: two minutes")
def test_the_handler_lacks_none() -> None:
    found = verdicts("handler.main.handler", tuple(PROPERTIES))
    assert Verdict.NO not in found.values()
