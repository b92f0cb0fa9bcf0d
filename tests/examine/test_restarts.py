"""`restarts` counts the rows written by events with a key, in any order of the events."""

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
def test_rows_are_counted_whichever_event_comes_first(
    handler: str, events: tuple[object, ...]
) -> None:
    inputs = Inputs(handler=handler, events=events, wanted=("restarts",), fast=True)
    findings, _ = measure(inputs, "not needed")
    finding = findings["restarts"]
    assert (finding.numbers["rows_doubled"], finding.numbers["rows_lost"]) == (0, 0), finding
    assert finding.verdict is Verdict.YES, finding
