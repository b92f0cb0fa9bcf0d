"""The reports of an examination, written from fixed findings."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from infra.local import ROOT, LabError
from infra.local.examine import report
from infra.local.examine.command import _measure
from infra.local.examine.finding import Finding, UnknownError, Verdict, conclude, unknown
from infra.local.examine.inputs import Inputs
from infra.local.examine.properties import PROPERTIES, Property
from tests.examine.__main__ import markdown
from tests.examine.recipes import PREDICTED_MISSING

FINDINGS = {
    "thaw": conclude(False, "closed politely: status 500 | no", closed_politely=False),
    "memory": conclude(True, "0.1 KiB each", kib_per_request=0.1),
    "frozen": unknown("it leaves a transaction open"),
}


def test_the_json_report_matches_its_schema() -> None:
    content = report.make(Inputs(required=("thaw",)), FINDINGS, {"postgres": "18.6"}, 61.4)
    jsonschema.validate(
        json.loads(json.dumps(content)), json.loads((ROOT / "docs/examine.schema.json").read_text())
    )
    verdicts = [result["verdict"] for result in content["properties"]]
    assert verdicts == ["no", "yes", "could not tell"]
    assert content["environment"]["postgres"] == "18.6"


def test_the_committed_recipes_lack_what_theory_predicts() -> None:
    content = json.loads((report.REPORTS / "recipes.json").read_text())
    missing = {
        recipe["name"]: {row["name"] for row in recipe["properties"] if row["verdict"] == "no"}
        for recipe in content["recipes"]
    }
    assert missing == PREDICTED_MISSING
    assert (report.REPORTS / "recipes.md").read_text() == markdown(content)


@pytest.mark.parametrize(
    ("required", "missing"),
    [
        ((), []),
        (("memory",), []),
        (("thaw", "memory"), ["thaw"]),
        (("frozen",), ["frozen"]),  # an unknown property counts as missing
        (("start",), ["start"]),
    ],
)
def test_a_required_property_without_a_yes_is_missing(
    required: tuple[str, ...], missing: list[str]
) -> None:
    assert report.missing(Inputs(required=required), FINDINGS) == missing


def test_only_missing_properties_have_a_remedy_in_the_report(tmp_path: Path) -> None:
    report.write(report.make(Inputs(), FINDINGS, {}, 1), tmp_path)
    text = (tmp_path / "examine.md").read_text()
    assert "### `thaw`" in text
    assert "### `frozen`" not in text
    assert "status 500 \\| no" in text
    assert {path.name for path in tmp_path.iterdir()} == {"examine.json", "examine.md"}
    assert any(line.startswith("thaw: ") for line in report.remedies(FINDINGS))


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        (
            {"rows_doubled": 2, "rows_lost": 0, "recovery_postgres_s": 0.1},
            ["sends its write again"],
        ),
        ({"rows_doubled": 0, "rows_lost": 3, "recovery_postgres_s": 0.1}, ["Rows are missing"]),
        (
            {"rows_doubled": None, "rows_lost": None, "recovery_postgres_s": 3.9},
            ["After a failover"],
        ),
        (
            {"rows_doubled": 1, "rows_lost": 0, "recovery_pgbouncer_s": 3.9},
            ["sends its write again", "After a failover"],
        ),
        ({"recovery_postgres_s": 3.0}, ["After a failover"]),  # 3.004, rounded
    ],
)
def test_the_remedy_of_restarts_depends_on_the_measured_numbers(
    numbers: dict[str, float | int | str | bool | None], expected: list[str], tmp_path: Path
) -> None:
    findings = {"restarts": Finding(Verdict.NO, "measured", numbers)}
    report.write(report.make(Inputs(), findings, {}, 1), tmp_path)
    for text in ("\n".join(report.remedies(findings)), (tmp_path / "examine.md").read_text()):
        costs = ("sends its write again", "Rows are missing", "After a failover")
        assert [cost for cost in costs if cost in text] == expected


def test_the_remedy_for_round_trips_keeps_writes_in_a_transaction() -> None:
    [(_, remedy)] = PROPERTIES["round_trips"].advice({"connections": 0})
    assert "reading = engine.execution_options(isolation_level='AUTOCOMMIT')" in remedy
    assert "create_async_engine(url, pool_size=1, max_overflow=0)" in remedy


def test_a_function_that_opens_connections_for_each_request_is_told_to_keep_one() -> None:
    [(consequence, remedy)] = PROPERTIES["round_trips"].advice({"connections": 1})
    assert "one sandbox is enough to exhaust Postgres" in consequence
    assert "once per process" in remedy


@pytest.mark.parametrize(
    "message", ["sorry, too many clients already", 'too many connections for role "appuser"']
)
async def test_a_function_that_exhausts_postgres_during_a_measurement_is_told_so(
    monkeypatch: pytest.MonkeyPatch, message: str
) -> None:
    async def fail(lab: object) -> Finding:
        raise UnknownError(f"request 38 failed: {message}")

    monkeypatch.setitem(PROPERTIES, "memory", Property("memory", "", fail, "", ""))
    lab: Any = None  # `fail` does not use it
    finding = await _measure(lab, "memory")
    assert finding.reason.endswith(f"{message}; it opens more connections than Postgres has")


def test_the_report_on_another_service_is_written_to_that_service_s_folder(tmp_path: Path) -> None:
    assert report.folder_of(ROOT) == report.REPORTS
    assert report.folder_of(tmp_path) == tmp_path / "reports"
    assert not list(tmp_path.iterdir())
    report.write(report.make(Inputs(), FINDINGS, {}, 1), tmp_path)
    assert "](../docs" not in (tmp_path / "examine.md").read_text()


def test_an_unwritable_report_folder_is_rejected_before_the_examination(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("not a folder")
    with pytest.raises(LabError, match=f"the report cannot be written to {tmp_path}/reports"):
        report.folder_of(tmp_path)


def test_each_property_is_documented_and_has_a_mutant() -> None:
    text = (ROOT / "docs/examine.md").read_text()
    mutants = (ROOT / "tests/examine/mutants.py").read_text()
    for name, examined_property in PROPERTIES.items():
        assert f"### `{name}`" in text
        assert f"def _{name}()" in mutants
        assert examined_property.consequence
        assert examined_property.remedy
    assert Finding(Verdict.YES).verdict == "yes"
