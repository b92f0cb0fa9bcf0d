"""Imports respect the layers, files stay small, and packages are pinned."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

from infra.local import ROOT

SAMPLE = sorted((ROOT / "handler").glob("*.py"))
ENGINE = sorted((ROOT / "handler" / "warm").rglob("*.py"))


def test_imports_respect_the_layers() -> None:
    """The contracts are in pyproject.toml, `[tool.importlinter]`."""
    linter = Path(sys.executable).with_name("lint-imports")
    result = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_the_engine_does_not_mention_the_sample() -> None:
    defaults = re.compile(r'Field\("(storefront|appuser)"')
    for path in ENGINE:
        text = defaults.sub("", path.read_text())
        assert not re.search("order|storefront|appuser", text, re.I), path


def lines_of_code(path: Path) -> int:
    """Count lines without docstrings, comments and blank lines."""
    source = path.read_text()
    with_docstring = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    docstring_lines = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, with_docstring) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    return sum(
        1
        for number, line in enumerate(source.splitlines(), 1)
        if number not in docstring_lines and not re.match(r"\s*(#|$)", line)
    )


def test_the_handler_stays_small() -> None:
    for path in SAMPLE + ENGINE:
        assert len(path.read_text().splitlines()) <= 200, path
    assert sum(map(lines_of_code, SAMPLE)) <= 350
    assert sum(map(lines_of_code, ENGINE)) <= 2400


REQUIREMENTS = [
    "handler/requirements.txt",
    "infra/database/requirements.txt",
    "infra/local/requirements.txt",
    "infra/local/requirements-reports.txt",
    "tests/requirements.txt",
    "infra/service/requirements-dev.txt",
]
#: Files with their own virtual environments, whose versions may therefore differ.
WITH_OWN_ENVIRONMENT = [
    "infra/aws/requirements-checkov.txt",
    "infra/aws/requirements.txt",
    "tests/requirements-emulator.txt",
    "infra/service/requirements.txt",
    "tests/examine/recipes/stac_fastapi/requirements.txt",
]


def pins(name: str) -> dict[str, str]:
    return dict(
        re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", (ROOT / name).read_text(), re.M)
    )


def test_every_requirement_is_pinned_by_hash_without_an_index() -> None:
    shared: dict[str, str] = {}
    files = [path for path in ROOT.glob("[hit]*/**/requirements*.txt") if not path.is_symlink()]
    names = {str(path.relative_to(ROOT)) for path in files}
    assert names == {*REQUIREMENTS, *WITH_OWN_ENVIRONMENT}
    for name in REQUIREMENTS + WITH_OWN_ENVIRONMENT:
        text = (ROOT / name).read_text()
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not re.search(r"^--|://", text, re.M)
        for package, version in pins(name).items() if name not in WITH_OWN_ENVIRONMENT else ():
            assert shared.setdefault(package, version) == version, (name, package)


def test_every_declared_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    declared = {
        "handler/requirements.txt": project["project"]["dependencies"],
        "infra/database/requirements.txt": project["dependency-groups"]["database"],
        "infra/local/requirements.txt": project["dependency-groups"]["local"],
        "tests/requirements.txt": project["dependency-groups"]["tests"],
        "infra/aws/requirements-checkov.txt": project["dependency-groups"]["checkov"],
        "infra/aws/requirements.txt": project["dependency-groups"]["aws"],
        "infra/service/requirements.txt": project["dependency-groups"]["copier"],
        "infra/service/requirements-dev.txt": project["dependency-groups"]["service"],
        "tests/examine/recipes/stac_fastapi/requirements.txt": project["dependency-groups"]["stac"],
    }
    for name, entries in declared.items():
        packages = [entry for entry in entries if isinstance(entry, str)]  # not an included group
        names = {re.match(r"[a-z0-9-]+", package.lower())[0] for package in packages}  # type: ignore[index]  # always matches
        assert names <= pins(name).keys(), name


def test_make_test_runs_every_test_only_with_all() -> None:
    def paths(*variables: str) -> list[str]:
        command = ["make", "--dry-run", "--no-print-directory", "test", *variables]
        # Without the MAKEFLAGS of the `make test` that runs this test.
        environment = {"PATH": os.environ["PATH"]}
        output = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
        return output.stdout.splitlines()[-1].partition("--max-worker-restart=0")[2].split()

    assert paths() == ["tests/unit", "tests/integration", "tests/runtime"]
    assert paths("ALL=1") == []
    assert paths("ARGS=tests/faults -k reloaded") == ["tests/faults", "-k", "reloaded"]
    assert "make test ALL=1 " in (ROOT / ".ci/run").read_text()
