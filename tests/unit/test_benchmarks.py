"""The benchmark's arithmetic and its reading of the committed report."""

import pytest

from infra.local import LabError
from tests.benchmarks import report
from tests.benchmarks.ratio import Ratio


def test_a_ratio_is_computed_in_each_round() -> None:
    # The second round was twice as slow for both.
    assert Ratio.of([1.1, 2.0, 1.2], [1.0, 2.0, 1.0]) == Ratio(measured=1.1, low=1.0, high=1.2)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", '"schema"'])
def test_a_corrupt_report_is_one_line_that_names_the_command(text: str) -> None:
    with pytest.raises(LabError, match=r"^reports/bench\.json is corrupt\. Run: make bench$"):
        report.read(text)


def test_a_report_of_an_older_schema_is_one_line_that_names_the_command() -> None:
    with pytest.raises(LabError, match=r"^reports/bench\.json has schema 2, not 3\."):
        report.read('{"schema": 2, "warm": []}')
