"""The benchmark's arithmetic and its reading of the committed report."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.local import LabError, cpu_quota
from tests.benchmarks import __main__ as command
from tests.benchmarks import counts, report, storm
from tests.benchmarks.compare import NOISE, compare
from tests.benchmarks.ratio import Ratio


def test_a_ratio_is_computed_in_each_round() -> None:
    # The second round was twice as slow for both.
    assert Ratio.of([1.1, 2.0, 1.2], [1.0, 2.0, 1.0]) == Ratio(measured=1.1, low=1.0, high=1.2)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '{"schema": 3}'])
def test_a_corrupt_report_is_one_line_that_names_the_command(text: str) -> None:
    with pytest.raises(LabError, match=r"^reports/bench\.json is corrupt\. Run: make bench$"):
        report.read(text)


def test_a_report_of_an_older_schema_is_one_line_that_names_the_command() -> None:
    with pytest.raises(LabError, match=r"^reports/bench\.json has schema 2, not 3\."):
        report.read('{"schema": 2, "warm": []}')


def row(measured: float, low: float, high: float) -> report.Row:
    return {"metric": "ratio", "measured": measured, "low": low, "high": high}


@pytest.mark.parametrize(
    ("committed", "measured", "is_worse"),
    [
        ((1.0, 0.9, 1.1), (1.2, 1.1, 1.3), False),  # the intervals touch
        ((1.0, 0.9, 1.1), (1.2, 1.1 * (1 + NOISE) + 0.01, 1.3), True),
        ((1.0, 0.9, 1.1), (0.5, 0.4, 0.6), False),
        ((1.0, 1.0, 1.0), (1.05, 1.05, 1.05), True),  # a count has no noise
    ],
)
def test_a_ratio_is_worse_if_its_interval_is_above_the_committed_one(
    committed: tuple[float, float, float], measured: tuple[float, float, float], is_worse: bool
) -> None:
    [comparison] = compare([row(*committed)], [row(*measured), row(1, 1, 1) | {"metric": "new"}])
    assert comparison.is_worse is is_worse


def test_a_count_above_its_limit_is_reported() -> None:
    assert counts.above_limit({"warm_db_round_trips": 1, "warm_statements": 2}) == [
        "warm_statements is 2, above its limit of 1"
    ]


def test_without_a_cpu_quota_the_storm_is_left_out_with_its_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def one_storm(*_: object) -> None:
        with cpu_quota.cpu_quota(os.getpid(), 0.25):
            pass

    monkeypatch.setattr(cpu_quota, "_GROUPS", tmp_path / "not mounted")
    monkeypatch.setattr(storm, "_measure_one", one_storm)
    progress: list[str] = []
    stack: Any = SimpleNamespace()
    reason = command._storm(stack, progress.append)
    assert "a CPU quota needs root and the CPU controller" in str(reason)
    assert progress[-1] == f"storm: left out: {reason}"
    full_report = report.committed() | {"storm": reason}
    assert report.under_load(full_report)[0] == f"Not measured: {reason}."


def test_a_report_without_the_figures_of_full_1_names_the_command() -> None:
    assert report.under_load({}) == ["Not measured: use `make bench FULL=1`."]
