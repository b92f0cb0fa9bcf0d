"""The committed report covers every scenario and shows no loss."""

from tests.documents.tables import committed
from tests.faults import report
from tests.faults.scenarios import ISOLATED_SCENARIOS, SCENARIOS

MEASUREMENTS = report.read(committed("faults.json"))


def test_every_scenario_has_a_row_in_the_report() -> None:
    assert [row.title for row in MEASUREMENTS] == [
        scenario.title for scenario in (*SCENARIOS, *ISOLATED_SCENARIOS)
    ]


def test_the_report_shows_no_lost_or_duplicated_write_and_no_leak() -> None:
    assert not any(
        row.lost_writes or row.duplicated_writes or row.leaked_connections for row in MEASUREMENTS
    )


def test_the_json_and_markdown_reports_are_from_the_same_run() -> None:
    assert committed("faults.md").endswith(report.table(MEASUREMENTS))
