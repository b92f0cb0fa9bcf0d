"""`restarts` counts the rows of events with an idempotency key, whichever event comes first."""

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
def test_no_row_is_reported_as_doubled_or_lost_whichever_event_comes_first(
    handler: str, events: tuple[object, ...]
) -> None:
    inputs = Inputs(handler=handler, events=events, wanted=("restarts",), fast=True)
    findings, _ = measure(inputs, no_filter="not needed for restarts")
    finding = findings["restarts"]
    assert (finding.numbers["rows_doubled"], finding.numbers["rows_lost"]) == (0, 0), finding
    assert finding.verdict is Verdict.YES, finding
