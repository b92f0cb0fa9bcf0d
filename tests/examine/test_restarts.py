"""`restarts` counts the rows of the events with a key, wherever they stand among the others."""

import pytest

from infra.local.examine.command import measure
from infra.local.examine.finding import Verdict
from infra.local.examine.inputs import Inputs
from tests.events import http_api

READ = http_api("GET", "/orders/1")
WRITE = http_api("POST", "/orders", body='{"customer_name": "Ada"}', idempotency_key="{key}")


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("handler", "events"),
    [
        ("handler.main.handler", (READ, WRITE)),
        ("handler.main.handler", (WRITE, READ)),
        ("tests.examine.recipes.every_property.handler", (WRITE, READ)),
    ],
    ids=["read-first", "write-first", "recipe"],
)
def test_rows_are_counted_in_either_order(handler: str, events: tuple[object, ...]) -> None:
    inputs = Inputs(handler=handler, events=events, wanted=("restarts",), fast=True)
    findings, _ = measure(inputs, "not needed")
    found = findings["restarts"]
    assert (found.numbers["rows_doubled"], found.numbers["rows_lost"]) == (0, 0), found
    assert found.verdict is Verdict.YES, found
