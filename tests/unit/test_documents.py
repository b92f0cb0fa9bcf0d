"""The documents agree with the code and the reports, and the site is complete."""

import re
import subprocess
import sys
from pathlib import Path

import asyncpg
import pytest
import yaml

from handler.warm import request_policy
from infra.local import ROOT
from tests.documents import documents, name, prose, tables

DOCUMENTS = documents()
MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):.*## ", MAKEFILE, re.M))
EACH_DOCUMENT = pytest.mark.parametrize("path", DOCUMENTS, ids=name)


# --- Generated tables ----------------------------------------------------------------------------


@EACH_DOCUMENT
def test_the_generated_tables_are_current(path: Path) -> None:
    """Run `make fmt` if this fails."""
    text = path.read_text()
    # `make churn` and others may have written a report since the last commit.
    assert text in (
        tables.generated(text, read_report) for read_report in (tables.committed, tables.current)
    )


def test_every_generated_table_appears_in_a_document() -> None:
    table_names = [
        region[1] for path in DOCUMENTS for region in tables.REGION.finditer(path.read_text())
    ]
    assert sorted(table_names) == sorted([*tables.TABLES, "make machines"])


def test_an_outdated_table_is_regenerated() -> None:
    page = (ROOT / "docs/configuration.md").read_text()
    outdated = page.replace("| `5432` |", "| `5433` |")
    assert outdated != page
    assert tables.generated(outdated, tables.current) == page


def test_every_condition_of_the_request_policy_is_in_the_error_table() -> None:
    documented = {request_policy.classify(error).name for error in tables.SYMPTOMS}
    assert documented == {row[0] for row in request_policy._TABLE}


def test_a_pgbouncer_message_is_classified_alike_at_login_and_later() -> None:
    """asyncpg raises it as 08P01 during the login and as 08003 on an open connection."""
    for error in tables.SYMPTOMS:
        if getattr(error, "sqlstate", None) == "08P01" and "SASL" not in str(error):
            [later_error] = tables.server("08003", str(error))
            assert isinstance(later_error, asyncpg.PostgresError)
            at_login, later = map(request_policy.classify, (error, later_error))
            assert (at_login.name, at_login.hint, at_login.status) == (
                later.name,
                later.hint,
                later.status,
            )


# --- References ----------------------------------------------------------------------------------


@EACH_DOCUMENT
def test_make_targets_and_paths_in_documents_exist(path: Path) -> None:
    text = path.read_text()
    if path.name == "CHANGELOG.md":
        return  # it may refer to files and targets of older versions
    assert set(re.findall(r"(?:`|^ *)make ([a-z]+)", text, re.M)) <= TARGETS
    for file in re.findall(r"`((?:handler|infra|pgbouncer|tests|reports|docs)/[\w./]*)`", text):
        assert (ROOT / file).exists(), file


@EACH_DOCUMENT
def test_links_lead_to_existing_files_and_headings(path: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]+`", "", path.read_text(), flags=re.S)
    for title, target in re.findall(r"\[([^]]+)\]\(([^)\s]+)\)", text):
        if target.startswith(("https://", "../../compare", "../../releases")):
            continue
        linked, _, anchor = target.partition("#")
        file = path.parent / linked if linked else path
        assert file.exists(), (title, target)
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(), re.M)
            slugs = {
                re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings
            }
            assert anchor in slugs, (title, target)


@EACH_DOCUMENT
def test_diagrams_contain_no_semicolon(path: Path) -> None:
    """Mermaid ends a statement at a semicolon."""
    for diagram in re.findall(r"```mermaid\n(.*?)```", path.read_text(), re.S):
        assert ";" not in diagram


def test_documented_limits_match_the_configuration() -> None:
    """For example: `client_idle_timeout` (300 s)."""
    configuration = "\n".join(
        (ROOT / file).read_text() for file in ("pgbouncer/pgbouncer.ini", "infra/database/roles.py")
    )
    checked = 0
    for path in DOCUMENTS:
        text = path.read_text()
        limits = re.findall(r"`([a-z_]+)` \((\d+) s\)|`([a-z_]+)`[^|]* \| (\d+) s \|", text)
        for limit, value, table_limit, table_value in limits:
            checked += 1
            setting = rf'^ *"?{limit or table_limit}"? ?[=:] "?{value or table_value}(s|\b)'
            assert re.search(setting, configuration, re.M), (path.name, limit or table_limit)
    assert checked >= 10


def test_documented_names_are_in_the_files_given_for_them() -> None:
    """As in: `MARGIN`, `handler/warm/request_policy.py`; `Plan` in `infra/local/churn/plan.py`."""
    pairs = 0
    for document in DOCUMENTS:
        text = " ".join(document.read_text().split())
        for word, file in re.findall(r"`([^`]+)`(?:,| in) `(\w+/[\w/]+\.(?:py|txt))`", text):
            if "/" not in word:
                pairs += 1
                assert re.search(
                    rf"\b{re.escape(word.split(' …')[0])}(?!\w)", (ROOT / file).read_text()
                ), (word, file)
    assert pairs >= 10


def test_every_make_target_has_a_help_line() -> None:
    assert set(re.findall(r"^\.PHONY: (.*)$", MAKEFILE, re.M)[0].split()) == TARGETS


# --- Prose and site ------------------------------------------------------------------------------


@EACH_DOCUMENT
def test_the_prose_follows_the_style_rules(path: Path) -> None:
    assert list(prose.faults(path)) == []


def test_discouraged_words_long_sentences_and_long_pages_are_reported(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    word = "nursery"  # codespell:ignore nursery
    text = f"# Page\n\nThe {word}.\n\n`goodbye`\n\n" + "word " * 50 + ".\n" + "line.\n" * 250
    page.write_text(text)
    assert [fault.split(":")[0] for fault in prose.faults(page)] == [
        "257 lines; 250 at most",
        "line 3",
        "line 7",
    ]


def test_the_site_builds_strictly_and_loads_nothing_from_another_host(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    result = subprocess.run(build, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    for path in DOCUMENTS:
        if path.name != "README.md" and ".github" not in path.parts:
            assert (tmp_path / name(path.with_suffix("")) / "index.html").exists()
    external_resource = r'<(?:script|link|img|iframe)[^>]*? (?:src|href)="(?:https?:)?//[^"]*"'
    for page in tmp_path.rglob("*.html"):
        assert re.findall(external_resource, page.read_text()) == [], page
    assert "Time to recovery" in (tmp_path / "search/search_index.json").read_text()


# --- Releases ------------------------------------------------------------------------------------


def test_only_the_git_tag_holds_the_version() -> None:
    newest = re.findall(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)[0]
    for file in ("pyproject.toml", "handler/app.py", "handler/Dockerfile", "docker-compose.yml"):
        assert newest not in (ROOT / file).read_text(), file
    assert newest not in MAKEFILE


def test_the_archive_of_a_tag_has_a_checksum_and_release_notes(tmp_path: Path) -> None:
    def run(*words: str) -> str:
        result = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return result.stdout

    for file in ("Makefile", "CHANGELOG.md"):
        (tmp_path / file).write_bytes((ROOT / file).read_bytes())
    run("git", "init", "--quiet")
    run("git", "add", "Makefile", "CHANGELOG.md")
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.example", "-c", "commit.gpgsign=false")
    run("git", *identity, "commit", "--quiet", "--message=all")
    run("git", *identity, "tag", "v0.1.0")
    run("make", "archive", "TAG=v0.1.0")
    checksum = (tmp_path / "dist/SHA256SUMS").read_text()
    run("make", "archive", "TAG=v0.1.0")
    assert (tmp_path / "dist/SHA256SUMS").read_text() == checksum
    names = run("tar", "tzf", "dist/warm-engine-0.1.0.tar.gz").split()
    assert "warm-engine-0.1.0/Makefile" in names
    notes = (tmp_path / "dist/notes.md").read_text()
    assert "### Added" in notes
    assert "## [" not in notes
    missing = ["make", "archive", "TAG=v9.9.9"]
    result = subprocess.run(missing, cwd=tmp_path, capture_output=True, text=True)
    assert "CHANGELOG.md has no section [9.9.9]" in result.stderr


def test_workflows_run_existing_targets_and_actions_pinned_by_commit() -> None:
    for path in (ROOT / ".github/workflows").glob("*.yml"):
        text = path.read_text()
        uses = re.findall(r"uses: *(.*)", text)
        assert uses
        for action in uses:
            assert re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v\d+\.\d+\.\d+", action), action
        workflow = yaml.safe_load(text)
        assert workflow["permissions"] == {"contents": "read"}
        # Do not cancel a deployment, which AWS would continue, or a release.
        assert workflow["concurrency"]["cancel-in-progress"] is (path.name == "ci.yml")
        for job in workflow["jobs"].values():
            assert job["timeout-minutes"] <= 60
            runs = [step["run"] for step in job["steps"] if "run" in step]
            make_commands = [run for run in runs if run.startswith("make ")]
            assert make_commands
            assert {command.split()[1] for command in make_commands} <= TARGETS
