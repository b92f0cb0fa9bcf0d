"""The handler has every property, and each mutant lacks exactly the one it is named after."""

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

#: Measure every property of every mutant, which takes twenty minutes, and not only the missing one.
EVERY_PROPERTY = "EVERY_PROPERTY" in os.environ
NO_FILTER = None if network.is_isolated() else "the test does not run in a network namespace"


@pytest.fixture(autouse=True)
def short_init_limit() -> Iterator[None]:
    with mock.patch.object(cold_start, "INIT_LIMIT_S", 2.0):
        yield


def verdicts(handler: str, wanted: tuple[str, ...]) -> dict[str, Verdict]:
    findings, _ = measure(Inputs(handler=handler, wanted=wanted, fast=True), NO_FILTER)
    print(findings)
    return {name: finding.verdict for name, finding in findings.items()}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", PROPERTIES)
def test_a_mutant_lacks_exactly_one_property(name: str) -> None:
    wanted = tuple(PROPERTIES) if EVERY_PROPERTY else (name,)
    by_property = verdicts(f"tests.examine.mutants.{name}", wanted)
    missing = [other for other, verdict in by_property.items() if verdict is Verdict.NO]
    assert missing == [name]


@pytest.mark.timeout(600)
@pytest.mark.skipif(not EVERY_PROPERTY, reason="EVERY_PROPERTY=1: two minutes")
def test_the_handler_lacks_no_property() -> None:
    assert Verdict.NO not in verdicts("handler.main.handler", tuple(PROPERTIES)).values()


@pytest.mark.timeout(600)
def test_the_recipe_with_every_property_lacks_none() -> None:
    wanted = tuple(PROPERTIES) if EVERY_PROPERTY else ("exhaustion", "thaw")
    by_property = verdicts("tests.examine.recipes.every_property.handler", wanted)
    assert Verdict.NO not in by_property.values()
