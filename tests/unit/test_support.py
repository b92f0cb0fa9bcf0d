"""docs/support.md shows the report of `make machines`, and a broken machine is recognized."""

import json
from typing import Any

import pytest

from tests import machines

ROWS: dict[str, dict[str, Any]] = json.loads(machines.REPORT.read_text())
GOOD: dict[str, Any] = {
    **dict.fromkeys(("doctor_exit", "demo_exit", "test_exit", "failed"), 0),
    "demo_s": 20.0,
    "psql_works": True,
    "passed": 900,
    "skipped": 50,
    "left_running": [],
}


def test_the_document_shows_the_committed_report() -> None:
    text = machines.DOCUMENT.read_text()
    assert machines.document(text, ROWS) == text


def test_every_tried_machine_is_good() -> None:
    assert ROWS.keys() <= machines.MACHINES.keys()
    assert not [name for name, row in ROWS.items() if not machines.is_good(row)]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("demo_exit", 2),
        ("doctor_exit", 1),
        ("test_exit", 1),
        ("demo_s", 61.0),
        ("psql_works", False),
        ("passed", 0),
        ("failed", 1),
        ("left_running", ["postgres -D data"]),
    ],
)
def test_a_machine_with_a_failure_is_not_good(name: str, value: object) -> None:
    assert machines.is_good(GOOD)
    assert not machines.is_good(GOOD | {name: value})


def test_skipped_tests_are_counted_with_their_reasons() -> None:
    junit = (
        '<testsuites><testsuite><testcase name="a"/>'
        '<testcase name="b"><failure message="no"/></testcase>'
        '<testcase name="c"><error message="no"/></testcase>'
        '<testcase name="d"><skipped message="needs root"/></testcase>'
        "</testsuite></testsuites>"
    )
    counts, reasons = machines.outcomes(junit)
    assert counts == {"passed": 1, "failed": 2, "skipped": 1}
    assert reasons == {"needs root": 1}
    assert machines.outcomes("") == ({}, {})
