"""The README says what is so, and the other documents where they can be held to it."""

import ast
import json
import re
import ssl
import tomllib
from pathlib import Path

import asyncpg
import pytest
import yaml
from sqlalchemy.exc import TimeoutError as PoolTimeout

from handler.failures import classify
from handler.settings import Settings
from infra.aws import template_file
from infra.local import ROOT

README = (ROOT / "README.md").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.M))
DOCUMENTS = sorted(
    path
    for folder in (ROOT, *(ROOT / name for name in ("handler", "infra", "pgbouncer", "tests")))
    for path in (folder.glob("*.md") if folder == ROOT else folder.rglob("*.md"))
)


def section(title: str) -> str:
    return README.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


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


def test_every_parameter_of_the_deployment_has_the_default_it_is_said_to_have() -> None:
    text = (ROOT / "infra/aws/README.md").read_text()
    parameters = template_file.read("template")["Parameters"]
    rows = re.findall(r"^\| `(\w+)` \| `([^`]*)` \|", text, re.M)
    assert len(rows) >= 8
    for name, default in rows:
        value = parameters[name]["Default"]
        assert default == (str(value).lower() if isinstance(value, bool) else str(value)), name


def row_of(words: str, states: str) -> str:
    """What becomes of an error with those words, as a row of the table."""
    raised: list[BaseException] = []
    for state in states.split(", "):
        if "QueuePool" in words:
            raised.append(PoolTimeout(words))
        elif "CERTIFICATE" in words:
            raised.append(ssl.SSLError(1, words))
        elif not state:
            raised.append(TimeoutError() if "Timeout" in words else OSError(111, words))
        else:
            raised.append(asyncpg.PostgresError.new({"S": "FATAL", "C": state, "M": words}))
    # The same, whichever of its states it comes in.
    [failure] = {
        (f.fault, f.remedy, f.status, f.retry_after, f.again) for f in map(classify, raised)
    }
    fault, remedy, status, after, again = failure
    caller = f"{'a second try, then ' if again else ''}{status}"
    caller += f", again in {after} s" if after else ""
    return f"| `{words}` | {states} | {fault.replace(words, '…')} | {remedy} | {caller} |"


def test_what_an_error_means_is_what_the_handler_makes_of_it() -> None:
    table = section("At 3 a.m.").partition("| the caller gets |\n|---|---|---|---|---|\n")[2]
    rows = table.partition("\n\n")[0].splitlines()
    assert len(rows) >= 12
    for row in rows:
        words, states = row.split(" | ")[:2]
        assert row == row_of(words.strip("|` "), states.strip())


def test_the_churn_is_what_the_report_says() -> None:
    """`make churn` writes the report; what the README says of it is to be written anew by hand."""
    runs = json.loads((ROOT / "reports/churn.json").read_text())["runs"]
    by = {(run["path"], run["ending"]): run for run in runs}
    for ending in ("graceful", "kill", "freeze", "vanish", "forgot"):
        direct, through = by["direct", ending], by["pgbouncer", ending]
        figures = (
            f"{direct['failed']} of {direct['invocations']} | {direct['backends_after']} | "
            f"{through['failed']} of {through['invocations']} | "
            f"{through['backends_after']}, {through['clients_after']} |"
        )
        assert re.search(rf"^\| `{ending}`: .* \| {re.escape(figures)}$", README, re.M), figures
    for path in ("direct", "pgbouncer"):
        rows = [run for run in runs if run["path"] == path]
        failed, of = (sum(run[name] for run in rows) for name in ("failed", "invocations"))
        assert f"{failed:,} of {of:,}" in README.replace("\n", " ")


def test_the_round_trips_it_speaks_of_are_the_report_s() -> None:
    warm = {
        row["handler"]: row["db_round_trips"]
        for row in json.loads((ROOT / "reports/bench.json").read_text())["warm"]
    }
    questions = " ".join(section("Questions").split())
    assert f"{warm['nullpool']} round trips warm instead of {warm['ours']} " in questions
    assert f"the usual engine needs {warm['seed']}." in questions


def test_every_limit_it_names_with_a_value_has_it() -> None:
    """As `client_idle_timeout` (300 s)."""
    places = "\n".join(
        (ROOT / name).read_text() for name in ("pgbouncer/pgbouncer.ini", "infra/database/roles.py")
    )
    for path in DOCUMENTS:
        for name, value in re.findall(r"`([a-z_]+)` \((\d+) s\)", path.read_text()):
            assert re.search(rf'^ *"?{name}"? ?[=:] "?{value}(s|\b)', places, re.M), (
                path.name,
                name,
            )


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_document_names_is_there(path: Path) -> None:
    text = path.read_text()
    assert set(re.findall(r"\bmake ([a-z]+)", text)) <= TARGETS
    for name in re.findall(r"`((?:handler|infra|pgbouncer|tests|reports)/[\w./]*)`", text):
        assert (ROOT / name).exists(), name
    for title, target in re.findall(r"\[([^]]+)\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "../../")):
            continue
        name, _, anchor = target.partition("#")
        file = path.parent / name if name else path
        assert file.exists(), (title, target)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = {re.sub(r"[^\w\- ]", "", each).lower().replace(" ", "-") for each in headings}
            assert anchor in slugs, (title, target)


def test_what_is_said_to_be_in_a_file_is_in_it() -> None:
    """As `Loop`, `handler/runtime.py` or `Row` in `infra/local/churn/plan.py`."""
    pairs = 0
    for document in DOCUMENTS:
        text = " ".join(document.read_text().split())
        for word, name in re.findall(r"`([^`]+)`(?:,| in) `([\w/]+\.(?:py|txt))`", text):
            if "/" not in word:
                pairs += 1
                assert re.search(
                    rf"\b{re.escape(word.split(' …')[0])}(?!\w)", (ROOT / name).read_text()
                )
    assert pairs >= 10


def test_every_target_has_its_line_of_help() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[0].split()
    assert set(phony) == TARGETS


def test_what_is_kept_and_what_is_replaced_is_the_whole_handler() -> None:
    """Replaced is what knows of the sample's orders, and nothing else."""
    text = section("Copy this into your service")
    keep, replace = (
        set(re.findall(r"`handler/(\w+)\.py`", line))
        for line in re.findall(r"^[12]\. .*?(?=^\d\.)", text, re.M | re.S)
    )
    modules = {path.stem: path for path in (ROOT / "handler").glob("*.py")}
    knows = {
        name
        for name, path in modules.items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module == "handler"
        and "orders" in [alias.name for alias in node.names]
    }
    assert replace == knows | {"orders"}
    assert keep == modules.keys() - replace - {"__init__"}


def test_what_it_costs_is_what_the_report_says() -> None:
    report = (ROOT / "reports/bench.md").read_text()
    table = report[report.index("| handler |") :].partition("\n\n")[0]
    assert table in README


def test_the_version_is_the_same_everywhere() -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    for name, pattern in {
        "handler/app.py": r'version="([\d.]+)"',
        "handler/Dockerfile": r"ARG VERSION=([\d.]+)",
        "docker-compose.yml": r"\$\{TAG:-([\d.]+)\}",
        "Makefile": r"\$\(or \$\(TAG\),([\d.]+)\)|TAG=([\d.]+)|handler:([\d.]+)",
        "CHANGELOG.md": r"^## \[([\d.]+)\] - \d{4}-\d\d-\d\d$",
    }.items():
        found = re.findall(pattern, (ROOT / name).read_text(), re.M)
        newest = found[:1] if name == "CHANGELOG.md" else found
        said = {"".join(each) for each in newest}
        assert said == {version}, name


def test_ci_runs_targets_that_exist_and_actions_that_cannot_be_moved() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text()
        uses = re.findall(r"uses: *(.*)", text)
        assert uses
        for each in uses:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", each), each
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        assert workflow["concurrency"]["cancel-in-progress"] is True
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
            runs = [step["run"] for step in job["steps"] if "run" in step]
            made = [run for run in runs if run.startswith("make ")]
            assert made
            assert {run.split()[1] for run in made} <= TARGETS
