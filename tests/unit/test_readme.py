"""The README says what is so."""

import re

from handler.settings import Settings
from infra.local import ROOT

README = (ROOT / "README.md").read_text()


def test_every_setting_stands_in_the_table_as_it_is() -> None:
    rows = dict(re.findall(r"^\| `(DB_\w+)` \| (.*) \|$", README, re.M))
    expected = {}
    for name, field in Settings.model_fields.items():
        variable = "DB_PASS" if name == "password" else f"DB_{name.upper()}"
        default = field.default
        if name == "password":
            default = default.get_secret_value()
        shown = "unset" if default is None else f"`{default}`"
        expected[variable] = f"{shown} | {field.description}"
    assert rows.keys() == expected.keys()
    for variable, row in rows.items():
        assert row.startswith(f"{expected[variable]} |"), variable


def test_every_target_it_names_is_one() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.M))
    assert set(re.findall(r"\bmake ([a-z]+)", README)) <= targets


def test_every_target_has_its_line_of_help() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.M)[0].split()
    assert set(phony) == set(re.findall(r"^([a-z]+):.*## ", makefile, re.M))


def test_every_file_it_names_is_there() -> None:
    for name in re.findall(r"`((?:handler|infra|pgbouncer|tests)/[\w./]*)`", README):
        assert (ROOT / name).exists(), name


def test_what_it_costs_is_what_the_report_says() -> None:
    report = (ROOT / "reports/bench.md").read_text()
    table = report[report.index("| handler |") :].partition("\n\n")[0]
    assert table in README
