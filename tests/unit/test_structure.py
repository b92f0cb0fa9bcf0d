"""The layout: layers, file sizes and pinned packages."""

import ast
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
    checked = subprocess.run([linter, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout


def test_the_engine_does_not_mention_the_sample() -> None:
    defaults = re.compile(r'Field\("(storefront|appuser)"')
    for path in ENGINE:
        text = defaults.sub("", path.read_text())
        assert not re.search("order|storefront|appuser", text, re.I), path


def lines_of_code(path: Path) -> int:
    """Count lines without docstrings, comments and blank lines."""
    source = path.read_text()
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    output = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for n, line in lines if n not in output and not re.match(r"\s*(#|$)", line))


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
#: Each has its own virtual environment, and so its own versions.
APART = [
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
    agreed: dict[str, str] = {}
    found = [each for each in ROOT.glob("[hit]*/**/requirements*.txt") if not each.is_symlink()]
    assert {str(each.relative_to(ROOT)) for each in found} == {*REQUIREMENTS, *APART}
    for name in REQUIREMENTS + APART:
        text = (ROOT / name).read_text()
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not re.search(r"^--|://", text, re.M)
        for package, version in pins(name).items() if name not in APART else ():
            assert agreed.setdefault(package, version) == version, (name, package)


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
    for name, wanted in declared.items():
        packages = [each for each in wanted if isinstance(each, str)]  # the others include a group
        names = {re.match(r"[a-z0-9-]+", each.lower())[0] for each in packages}  # type: ignore[index]  # always matches
        assert names <= pins(name).keys(), name
