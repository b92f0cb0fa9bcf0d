"""`make new` creates a service whose demo and tests pass; `make update` merges a newer engine.

The clones and services of these tests use the packages that are already installed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import psycopg
import pytest

from infra.local import ROOT, LabError, service
from infra.local.stack import Stack
from infra.service.__main__ import changed_paths
from tests.faults.probe import probe

GIT = ("git", "-c", "user.name=a", "-c", "user.email=a@localhost")
#: Words of the sample. The brackets keep this file from matching the pattern itself.
SAMPLE_WORDS = r"storefron[t]|\border[s]\b|order_request[s]|warm-engin[e]|appuse[r]"

pytestmark = [
    pytest.mark.skipif(not shutil.which("git"), reason="needs git"),
    pytest.mark.timeout(600),
]


def run(*words: str | Path, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a command and return its exit status and output."""
    result = subprocess.run(
        words,
        cwd=cwd,
        env={**os.environ, **environment},
        input="",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return result.returncode, result.stdout


def output_of(result: tuple[int, str]) -> str:
    """Return the output of a command, which must have succeeded."""
    status, output = result
    assert status == 0, output
    return output


def commit(folder: Path, subject: str) -> None:
    for words in (("add", "--all"), ("commit", "--quiet", "--message", subject)):
        output_of(run(*GIT, *words, cwd=folder))


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clone this repository, with its uncommitted changes, so that these are tested too."""
    folder = tmp_path_factory.mktemp("work") / "warm-engine"
    status, output = run("git", "clone", "--quiet", ROOT, folder, cwd=ROOT)
    if status:
        pytest.skip(f"this folder is no git clone: {output}")
    changed_files = run(
        "git", "ls-files", "--modified", "--others", "--exclude-standard", cwd=ROOT
    )[1]
    for name in changed_files.splitlines():
        if (ROOT / name).exists():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name, follow_symlinks=False)
        else:
            (folder / name).unlink(missing_ok=True)
    if changed_files:
        commit(folder, "Uncommitted changes")
    equip(folder)
    return folder


def equip(clone: Path, service: Path | None = None) -> None:
    """Link the installed packages and the downloaded PgBouncer, so that setup installs nothing."""
    if (ROOT / ".tools").exists() and not (clone / ".tools").exists():
        (clone / ".tools").symlink_to(ROOT / ".tools")
    for group in ("service",) if service else ("local", "copier"):
        venv = (service or clone) / (".venv-copier" if group == "copier" else ".venv")
        venv.mkdir()
        for name in ("bin", "lib"):
            (venv / name).symlink_to(Path(sys.prefix) / name)
        shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
        code = f"from infra.local.setup import fingerprint; print(fingerprint({group!r}), end='')"
        output = output_of(run(sys.executable, "-c", code, cwd=clone, ROOT=str(service or "")))
        (venv / f"ready-{group}").write_text(output)


def shell(command: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Run a documented command, without the variables of the `make` that runs these tests."""
    unset = {name: "" for name in os.environ if name.startswith(("MAKE", "MFLAGS", "ARGS"))}
    python = {"PYTHON": sys.executable, "VENV": ".venv"}
    return run("sh", "-c", command, cwd=cwd, **{**unset, **python, **environment})


def make_new(clone: Path, destination: Path | str, name: str) -> tuple[int, str]:
    return run(sys.executable, "-m", "infra.service", "new", destination, name, cwd=clone)


def make_update(folder: Path) -> tuple[int, str]:
    return shell("make update", cwd=folder)


@pytest.fixture(scope="module")
def inventory(clone: Path) -> Path:
    """Create a service that the tests of this module share and must not change."""
    output_of(shell("make new DEST=../inventory NAME=inventory", cwd=clone))
    folder = clone.with_name("inventory")
    equip(clone, folder)
    return folder


@pytest.fixture
def clone_and_shop(clone: Path, tmp_path: Path) -> tuple[Path, Path]:
    """Create a clone and a service for a test that changes them."""
    own_clone = tmp_path / "warm-engine"
    assert run("git", "clone", "--quiet", clone, own_clone, cwd=clone)[0] == 0
    equip(own_clone)
    output_of(make_new(own_clone, tmp_path / "shop", "shop"))
    return own_clone, tmp_path / "shop"


def test_the_new_service_passes_its_own_tests(inventory: Path, clone: Path) -> None:
    plugin = str(clone / "infra/local/plugin")
    # pytest-asyncio, which the service does not use, would need its configuration.
    options = "-p no:asyncio"
    output = output_of(shell("make test", cwd=inventory, PYTHONPATH=plugin, PYTEST_ADDOPTS=options))
    assert "6 passed" in output


def test_the_demo_serves_a_row_cold_and_warm(inventory: Path) -> None:
    output = output_of(shell("make demo", cwd=inventory))
    assert '{"key":"first","text":"A row of sample.sql"}' in output
    assert "1 inventory_app" in output


def test_a_changed_model_gets_a_migration_that_needs_no_grant(clone: Path, inventory: Path) -> None:
    model = inventory / "handler/inventory.py"
    original = model.read_text()
    versions = inventory / "infra/database/migrations/versions"
    try:
        model.write_text(
            f"{original}\n\nclass More(Base):\n"
            '    __tablename__ = "more"\n'
            "    id: Mapped[int] = mapped_column(primary_key=True)\n"
        )
        output_of(shell('make migration MESSAGE="add a column"', cwd=inventory))
        [revision] = versions.glob("*_add_a_column.py")
        assert "op.create_table" in revision.read_text()
        with (
            Stack(service=service.find(inventory)) as stack,
            psycopg.connect(**stack.postgres.admin, dbname="inventory") as admin,
        ):
            query = "SELECT has_table_privilege('inventory_app', 'more', 'SELECT, INSERT, DELETE')"
            assert admin.execute(query).fetchone() == (True,)
    finally:
        model.write_text(original)
        for revision in versions.glob("*_add_a_column.py"):
            revision.unlink()


def test_the_new_service_is_committed_and_records_its_version(inventory: Path, clone: Path) -> None:
    answers = (inventory / ".copier-answers.yml").read_text()
    version = run("git", "describe", "--tags", "--always", cwd=clone)[1].strip()
    assert f"_commit: {version}\n" in answers.replace("'", "")
    assert "_src_path: ../warm-engine\n" in answers
    assert run("git", "log", "--format=%s", cwd=inventory)[1] == "Create the service inventory\n"


def test_the_new_service_does_not_mention_the_sample(inventory: Path) -> None:
    matches = run(
        "git", "grep", "-inwE", SAMPLE_WORDS, "--", ":!.copier-answers.yml", cwd=inventory
    )[1]
    allowed = (
        "LICENSE.warm-engine",
        "tool.warm-engine",
        "in order",
        "their order",
        "order of",
        "order (",
    )
    unexpected = [
        line for line in matches.splitlines() if not any(word in line for word in allowed)
    ]
    assert not unexpected, "\n".join(unexpected)


def test_the_new_service_passes_its_own_linters(inventory: Path) -> None:
    for words in (("ruff", "check", "."), ("ruff", "format", "--check", "."), ("mypy",)):
        output_of(run(sys.executable, "-m", *words, cwd=inventory, MYPY_CACHE_DIR=os.devnull))


def test_the_linters_accept_a_module_shared_by_tests(inventory: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    shutil.copytree(inventory, folder, symlinks=True)
    (folder / "tests/rows.py").write_text('FIRST = "first"\n')
    (folder / "tests/test_rows.py").write_text(
        'from tests.rows import FIRST\n\n\ndef test_first() -> None:\n    assert FIRST == "first"\n'
    )
    for words in (("ruff", "check", "tests"), ("mypy",)):
        output_of(run(sys.executable, "-m", *words, cwd=folder, MYPY_CACHE_DIR=os.devnull))


def test_an_added_package_is_pinned_for_the_image(
    clone: Path, inventory: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "added"
    shutil.copytree(inventory, folder, symlinks=True)
    status, output = shell("make add PACKAGE=python-slugify", cwd=folder, LAB=str(clone))
    if "error sending request" in output:
        pytest.skip("needs a package index")
    assert status == 0, output
    assert '"python-slugify",' in (folder / "pyproject.toml").read_text()
    pinned = (folder / "handler/requirements.txt").read_text()
    assert re.search(r"^python-slugify==.*\n +--hash=sha256:", pinned, re.M), pinned


@pytest.mark.parametrize("folder", [ROOT, ROOT / "infra/service/template"], ids=["root", "service"])
def test_uv_accepts_the_options_of_make_add(folder: Path, tmp_path: Path) -> None:
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    [options] = re.findall(r"/uv add (.*) \"\$\(PACKAGE\)\"", (folder / "Makefile").read_text())
    uv = Path(sys.prefix, "bin/uv")
    output_of(run(uv, "add", *options.split(), "python-slugify", cwd=tmp_path))
    assert '"python-slugify",' in (tmp_path / "pyproject.toml").read_text()


def test_a_service_with_a_long_name_is_formatted_correctly(clone: Path, tmp_path: Path) -> None:
    folder = tmp_path / "long"
    assert make_new(clone, folder, "stock_of_the_northern_warehous")[0] == 0
    for words in (("check", "."), ("format", "--check", ".")):
        output_of(run(sys.executable, "-m", "ruff", *words, cwd=folder))


def test_the_new_service_requires_the_same_packages_as_this_project(inventory: Path) -> None:
    project, service_project = (
        tomllib.loads((folder / "pyproject.toml").read_text()) for folder in (ROOT, inventory)
    )
    assert service_project["project"]["dependencies"] == project["project"]["dependencies"]
    groups = service_project["dependency-groups"]
    assert groups["database"] == project["dependency-groups"]["database"]
    assert groups["dev"] == project["dependency-groups"]["service"]


def test_an_update_merges_the_engine_and_keeps_the_author_s_files(
    clone_and_shop: tuple[Path, Path],
) -> None:
    clone, shop = clone_and_shop
    (shop / "handler/app.py").write_text("# mine\n")
    (shop / "handler/extra.py").write_text("# mine, too\n")
    (shop / "handler/shop.py").unlink()
    commit(shop, "My routes")
    engine = clone / "handler/warm"
    (engine / "tracing.py").write_text((engine / "tracing.py").read_text() + "\nADDED = 1\n")
    (engine / "metrics.py").rename(engine / "figures.py")
    commit(clone, "Change and move a part of the engine")
    output_of(make_update(shop))
    assert (shop / "handler/warm/tracing.py").read_text().endswith("\nADDED = 1\n")
    assert (shop / "handler/warm/figures.py").exists()
    assert not (shop / "handler/warm/metrics.py").exists()
    assert (shop / "handler/app.py").read_text() == "# mine\n"
    assert (shop / "handler/extra.py").exists()
    assert not (shop / "handler/shop.py").exists()
    version = run("git", "describe", "--tags", "--always", cwd=clone)[1].strip()
    answers = (shop / ".copier-answers.yml").read_text()
    assert f"_commit: {version}\n" in answers.replace("'", "")


def test_a_clone_with_uncommitted_changes_creates_the_committed_version(
    clone_and_shop: tuple[Path, Path],
) -> None:
    """The recorded version can therefore be found again."""
    clone, shop = clone_and_shop
    (clone / "handler/warm/tracing.py").write_text("# not committed\n")
    folder = shop.with_name("stock")
    output_of(make_new(clone, folder, "stock"))
    assert (folder / "handler/warm/tracing.py").read_text() != "# not committed\n"
    commit(clone, "Now it is")
    assert make_update(folder)[0] == 0
    assert (folder / "handler/warm/tracing.py").read_text() == "# not committed\n"


def test_a_conflict_is_shown_as_git_shows_conflicts(clone_and_shop: tuple[Path, Path]) -> None:
    clone, shop = clone_and_shop
    first = '"""OpenTelemetry'
    for folder, line in ((shop, "# the author's"), (clone, "# the engine's")):
        path = folder / "handler/warm/tracing.py"
        path.write_text(f"{line}\n{path.read_text()}")
        commit(folder, f"A first line {first}")
    status, output = make_update(shop)
    assert (status, "conflict   handler/warm/tracing.py" in output) == (2, True), output
    merged = (shop / "handler/warm/tracing.py").read_text()
    assert "<<<<<<<" in merged
    assert "# the author's" in merged
    assert "# the engine's" in merged
    assert "UU handler/warm/tracing.py" in run("git", "status", "--porcelain", cwd=shop)[1]


def test_a_changed_file_that_the_engine_moved_is_a_conflict(
    clone_and_shop: tuple[Path, Path],
) -> None:
    clone, shop = clone_and_shop
    path = shop / "handler/warm/tracing.py"
    path.write_text(path.read_text() + "\nMINE = 1\n")
    commit(shop, "A change of the engine")
    version = run("git", "rev-parse", "--short", "HEAD", cwd=shop)[1].strip()
    engine = clone / "handler/warm"
    (engine / "tracing.py").rename(engine / "spans.py")
    (engine / "metrics.py").unlink()
    commit(clone, "Move one module and remove another")
    status, output = make_update(shop)
    conflicts = [line for line in output.splitlines() if line.startswith("conflict")]
    assert (status, conflicts) == (
        2,
        [
            "conflict   handler/warm/tracing.py: changed here, moved or removed there; see your"
            f" version with `git show {version}:./handler/warm/tracing.py`"
        ],
    ), output
    file_before = run("git", "show", f"{version}:./handler/warm/tracing.py", cwd=shop)[1]
    assert file_before.endswith("MINE = 1\n")


def test_a_conflict_in_a_file_with_a_space_in_its_name_is_one_path(tmp_path: Path) -> None:
    git = partial(run, *GIT, cwd=tmp_path)
    git("init", "--quiet", "--initial-branch=main")
    path = tmp_path / "two words.txt"
    for branch in ("main", "other"):
        path.write_text("first\n" if branch == "main" else "other\n")
        commit(tmp_path, branch)
        git("checkout", "--quiet", "-b", "other")
    git("checkout", "--quiet", "main")
    path.write_text("main\n")
    commit(tmp_path, "A conflict")
    assert git("merge", "other")[0] == 1
    assert changed_paths(tmp_path, "--diff-filter=U") == ["two words.txt"]


def test_an_update_to_the_same_version_reports_it(clone_and_shop: tuple[Path, Path]) -> None:
    clone, shop = clone_and_shop
    version = run("git", "describe", "--tags", "--always", cwd=clone)[1].strip()
    (clone / "handler/warm/tracing.py").write_text("# not committed\n")
    status, output = make_update(shop)
    assert (status, f"already at {version}\n" in output) == (0, True), output
    assert f"uncommitted changes in {clone} were not included" in output
    assert run("git", "status", "--porcelain", cwd=shop)[1] == ""


@pytest.mark.parametrize(
    ("destination", "name", "message"),
    [
        ("{full}", "shop", "DEST={full} exists and is not empty"),
        ("{tmp}/new", "1shop", "NAME=1shop is not a valid name for a Python module and a database"),
        ("{tmp}/new", "class", "NAME=class is reserved"),
        ("{tmp}/new", "postgres", "NAME=postgres is reserved"),
        ("/proc/new", "shop", "/proc is not writable"),
        ("{tmp}/new", "Shop; DROP", "NAME=Shop; DROP is not a valid name"),
        ("{tmp}/new", "", "NAME= is not a valid name"),
        ("", "shop", "DEST is missing"),
        ("{tmp}/no/such/folder", "shop", "{tmp}/no/such does not exist"),
        ("{clone}/inside", "shop", "DEST={clone}/inside is in this repository"),
    ],
)
def test_bad_input_is_rejected_in_one_line_and_writes_nothing(
    clone: Path, tmp_path: Path, destination: str, name: str, message: str
) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "file").touch()
    paths = {"full": full, "tmp": tmp_path, "clone": clone}
    status, output = make_new(clone, destination.format(**paths), name)
    assert (status, output.count("\n")) == (1, 1), output
    assert output.startswith(f"new: {message.format(**paths)}")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_missing_git_is_reported_in_one_line(clone: Path, tmp_path: Path) -> None:
    words = (sys.executable, "-m", "infra.service", "new", tmp_path / "new", "shop")
    status, output = run(*words, cwd=clone, PATH=str(tmp_path))
    assert (status, output) == (
        1,
        "new: git is not installed, and versions cannot be determined without it\n",
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda shop: (shop / "new.txt").touch(), "update: Destination repository is dirty"),
        (lambda shop: record(shop, "_commit: v9.9.9"), "update: Unknown revision: 'v9.9.9'"),
        (lambda shop: record(shop, "_src_path: ../elsewhere"), "LAB=../elsewhere is not a clone"),
        (lambda shop: (shop / ".copier-answers.yml").unlink(), "LAB= is not a clone"),
    ],
    ids=["not committed", "unknown version", "another clone", "not made by make new"],
)
def test_an_impossible_update_is_rejected_in_one_line(
    clone_and_shop: tuple[Path, Path], change: Callable[[Path], object], message: str
) -> None:
    shop = clone_and_shop[1]
    change(shop)
    before = run("git", "status", "--porcelain", cwd=shop)[1]
    status, output = make_update(shop)
    lines = [line for line in output.splitlines() if not line.startswith("make")]
    assert (status, len(lines)) == (2, 1), output
    assert lines[0].startswith(message)
    assert run("git", "status", "--porcelain", cwd=shop)[1] == before


def record(shop: Path, line: str) -> None:
    """Replace the recorded version or the recorded path of the clone."""
    answers, name = shop / ".copier-answers.yml", line.partition(":")[0]
    other_lines = [
        other for other in answers.read_text().splitlines() if not other.startswith(name)
    ]
    answers.write_text("\n".join([*other_lines, line, ""]))
    commit(shop, "Another version")


def copy_with_text(inventory: Path, tmp_path: Path, name: str, text: str) -> Path:
    """Copy the service and append text to one of its files."""
    folder = tmp_path / "broken"
    shutil.copytree(inventory, folder, symlinks=True)
    path = folder / name
    path.write_text(path.read_text() + text)
    return folder


def test_a_handler_that_cannot_be_imported_is_reported(inventory: Path, tmp_path: Path) -> None:
    folder = copy_with_text(inventory, tmp_path, "handler/app.py", "\nimport nowhere\n")
    with pytest.raises(LabError, match="No module named 'nowhere'"):
        service.find(folder)


def test_a_failing_migration_is_reported_and_leaves_nothing(
    inventory: Path, tmp_path: Path
) -> None:
    path = "infra/database/migrations/versions/0001_inventory.py"
    folder = copy_with_text(
        inventory, tmp_path, path, '\n\ndef upgrade() -> None:\n    op.execute("SELEC")\n'
    )
    stack = Stack(service=service.find(folder))
    with pytest.raises(
        LabError, match=r'migrations of .* failed: .*syntax error at or near "SELEC"'
    ):
        stack.__enter__()
    assert not stack.folder.exists()


def test_the_plugin_reports_why_the_lab_did_not_start(
    clone: Path, inventory: Path, tmp_path: Path
) -> None:
    folder = copy_with_text(inventory, tmp_path, "handler/app.py", "\nimport nowhere\n")
    plugin = str(clone / "infra/local/plugin")
    words = (sys.executable, "-m", "pytest", "-q", "-p", "no:asyncio", "-k", "migrations")
    status, output = run(*words, cwd=folder, PYTHONPATH=plugin)
    assert status == 1, output
    assert re.search(r"Exit: the lab did not start: .*No module named 'nowhere'", output), output


API_KEY = """\
KEY = os.environ["API_KEY"]


def check(x_api_key: Annotated[str, Header()] = "") -> None:
    if x_api_key != KEY:
        raise HTTPException(401)


app = FastAPI(
    dependencies=[Depends(check)],"""


@pytest.fixture(scope="module")
def service_with_api_key(inventory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a service with an API key and a nested body, and configure `make faults` for it."""
    folder = tmp_path_factory.mktemp("guarded") / "inventory"
    shutil.copytree(inventory, folder, symlinks=True)
    replace(folder / "handler/app.py", "from typing", "import os\nfrom typing")
    replace(folder / "handler/app.py", "import FastAPI", "import Depends, FastAPI, Header")
    replace(folder / "handler/app.py", "app = FastAPI(", API_KEY)
    replace(folder / "handler/app.py", "class Body(BaseModel):", "class Inner(BaseModel):")
    replace(
        folder / "handler/app.py",
        "class Row(",
        "class Body(BaseModel):\n    rows: list[Inner]\n\n\nclass Row(",
    )
    replace(folder / "handler/app.py", "body.text", "body.rows[0].text")
    replace(folder / "tests/event.json", '"accept"', '"x-api-key": "key", "accept"')
    replace(folder / "pyproject.toml", '{text = "{value}"}', '{rows = [{text = "{value}"}]}')
    replace(folder / "pyproject.toml", "read_path", 'headers = {X-Api-Key = "key"}\nread_path')
    replace(folder / "pyproject.toml", "event =", 'environment = {API_KEY = "key"}\nevent =')
    return folder


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new))


def test_the_traffic_of_make_faults_sends_headers_and_a_nested_body(
    service_with_api_key: Path,
) -> None:
    probe(service.find(service_with_api_key))


def test_the_fixtures_set_the_variables_of_the_service(service_with_api_key: Path) -> None:
    command = (sys.executable, "-m", "infra.local", "serve", "--root", str(service_with_api_key))
    output = output_of(run(*command, cwd=ROOT))
    assert json.loads(output.splitlines()[0])["env"]["API_KEY"] == "key"


@pytest.mark.timeout(120)
def test_make_faults_runs_the_service_and_writes_its_report(service_with_api_key: Path) -> None:
    status, output = run(
        *(sys.executable, "-m", "tests.faults", "1"),
        cwd=ROOT,
        ROOT=str(service_with_api_key),
        PYTEST_ADDOPTS="-k 'frozen_in_mid_query or password_rotated'",
    )
    assert status == 0, output
    assert "2 passed" in output
    assert (
        "a sandbox frozen in mid-query" in (service_with_api_key / "reports/faults.md").read_text()
    )


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("{X-Api-Key", "{X-Other", "PUT /inventory/probe-1 returned 401 instead of 200 or 201"),
        (
            'read_path = "/inventory/',
            'read_path = "/inventory/x',
            "GET /inventory/xprobe-1 returned 404",
        ),
        ('"{value}"', '"text"', "GET /inventory/probe-1 returned a body without 'probe, value 1'"),
        ("SELECT key, text", "SELECT key, key", "rows does not return 'probe-1'"),
        ("SELECT key, text", "SELECT key, other", "rows failed: column "),
        ("[tool.warm-engine.traffic]", "[tool.other]", "has no [tool.warm-engine.traffic]"),
        ('{API_KEY = "key"}', "{API_KEY = 1}", "a value in environment is not a string"),
    ],
    ids=[
        *("no API key", "another path", "no value", "another column", "no column", "no traffic"),
        "a number as a variable",
    ],
)
def test_unusable_traffic_for_make_faults_is_reported(
    service_with_api_key: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    folder = tmp_path / "inventory"
    shutil.copytree(service_with_api_key, folder, symlinks=True)
    replace(folder / "pyproject.toml", old, new)
    with pytest.raises(LabError, match=re.escape(message)):
        probe(service.find(folder))


def test_a_folder_without_a_service_is_reported(tmp_path: Path) -> None:
    with pytest.raises(LabError, match=r"pyproject.toml: No such file"):
        service.find(tmp_path)
    (tmp_path / "pyproject.toml").write_text("[tool.warm-engine]\ndatabase = 'a'\n")
    with pytest.raises(LabError, match=r"\[tool.warm-engine\] is missing or wrong"):
        service.find(tmp_path)
