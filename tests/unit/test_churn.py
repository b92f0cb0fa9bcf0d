"""The churn report names each broken promise, and invalid plans are rejected."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from infra.local import LabError
from infra.local.churn import report
from infra.local.churn.plan import Plan, from_environment
from infra.local.churn.result import Result
from infra.local.churn.run import RELEASE_TIMEOUT_S

PLAN = Plan()
GOOD = Result(
    "pgbouncer",
    "graceful",
    invocations=900,
    succeeded=900,
    peak_backends=8,
    unclean_closes=0,
    release_s=0.1,
    release_limit_s=1.0,
    cold_latency_ms={"p50": 500.0, "p95": 900.0},
    warm_latency_ms={"p50": 5.0, "p95": 9.0},
    samples=[(0.0, 0, 0), (1.0, 8, 24)],
)
DIRECT = replace(GOOD, path="direct", succeeded=400, failed=500, failures_by_cause={"53300": 500})


@pytest.mark.parametrize("result", [GOOD, DIRECT], ids=lambda result: result.path)
def test_an_expected_result_breaks_no_promise(result: Result) -> None:
    assert report.broken_promises(result, PLAN) == []


@pytest.mark.parametrize(
    ("result", "promise"),
    [
        (
            replace(GOOD, failed=2, failures_by_cause={"53300": 2}),
            "2 of 900 invocations failed: 2 × 53300",
        ),
        (replace(GOOD, peak_backends=14), "14 backends at the peak, above PgBouncer's pool"),
        (replace(GOOD, unclean_closes=3), "3 clients did not close their connections"),
        (replace(GOOD, release_s=1.5), "closed only after 1.5 s, not within 1 s"),
        (replace(GOOD, release_s=None), "closed only after more than 25 s, not within 1 s"),
        (
            replace(DIRECT, failed=0, failures_by_cause={}),
            "the test proves nothing: 24 sandboxes do",
        ),
    ],
)
def test_a_broken_promise_is_reported_with_its_row(result: Result, promise: str) -> None:
    [failure] = report.broken_promises(result, PLAN)
    assert failure.startswith(f"{result.path}, graceful: ")
    assert promise in failure


def test_killed_clients_need_not_close_and_a_limit_beyond_the_measured_time_is_not_checked() -> (
    None
):
    killed = replace(GOOD, ending="kill", unclean_closes=24)
    frozen = replace(GOOD, ending="freeze", release_s=None, release_limit_s=RELEASE_TIMEOUT_S + 1)
    assert report.broken_promises(killed, PLAN) == report.broken_promises(frozen, PLAN) == []


@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("SANDBOXES", "1"),
        ("SANDBOXES", "501"),
        ("SANDBOXES", "many"),
        ("SANDBOXES", "-3"),
        ("SANDBOXES", "²"),
        ("MAX_CONNECTIONS", "19"),
        ("DEPLOYS", "0"),
    ],
)
def test_the_error_for_an_invalid_number_names_its_variable(
    monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(LabError, match=rf"{variable} is '{value}': not a number from \d+ to \d+"):
        from_environment()


def test_too_little_memory_is_reported_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    replace_fields = type(psutil.virtual_memory())._replace
    little_memory = replace_fields(psutil.virtual_memory(), available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: little_memory)
    with pytest.raises(
        LabError, match=r"need about \d+ MiB, but only 1024 MiB are free.*SANDBOXES=\d+"
    ):
        from_environment()


FIELDS = {
    "path",
    "ending",
    "invocations",
    "succeeded",
    "failed",
    "in_flight_at_ending",
    "failures_by_cause",
    "peak_backends",
    "peak_clients",
    "held_backends",
    "held_clients",
    "unclean_closes",
    "release_s",
    "release_limit_s",
    "cold_latency_ms",
    "warm_latency_ms",
    "samples",
    "warm_invocations_per_s",
}


@pytest.mark.parametrize("partial", [False, True])
def test_the_report_matches_its_schema_and_states_whether_it_is_partial(
    tmp_path: Path, partial: bool
) -> None:
    report.write([DIRECT, GOOD], PLAN, {"postgres": "18.4"}, partial=partial, folder=tmp_path)
    content: dict[str, Any] = json.loads((tmp_path / "churn.json").read_text())
    assert content["schema"] == 2
    assert (content["max_connections"], content["sandboxes"]) == (20, 24)
    assert all(run.keys() >= FIELDS for run in content["runs"])
    assert content.get("partial", False) is partial
    assert ("**Partial" in (tmp_path / "churn.md").read_text()) is partial
    assert sorted(path.name for path in tmp_path.iterdir()) == ["churn.json", "churn.md"]


def test_the_committed_report_is_complete_and_breaks_no_promise() -> None:
    """The README shows this report."""
    content = json.loads((report.REPORTS / "churn.json").read_text())
    assert "partial" not in content
    plan = Plan(content["sandboxes"], content["max_connections"], content["deploys"])
    rows = [Result(**run) for run in content["runs"]]
    assert len(rows) == 10
    assert [failure for row in rows for failure in report.broken_promises(row, plan)] == []
