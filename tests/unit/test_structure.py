"""Imports go one way, and what is copied stays small."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

from infra.local import ROOT

#: A module of the handler may import those to its right; leaves are imported by any.
ARROW = [
    "__main__",
    "main",
    "app",
    "problems",
    "orders",
    "engine",
    "connection",
    "credentials",
    "settings",
]
LEAVES = {"runtime", "failures", "pinned", "dialect", "logs"}
HANDLER = sorted((ROOT / "handler").glob("*.py"))
INFRA = sorted(path.relative_to(ROOT) for path in (ROOT / "infra").rglob("*.py"))


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("path", HANDLER, ids=lambda path: path.stem)
def test_the_handler_imports_downwards_only(path: Path) -> None:
    for name in imports(path):
        top, *rest = name.split(".")
        assert top not in ("infra", "tests"), name
        if top == "handler" and rest[0] not in LEAVES:
            assert path.stem not in LEAVES, f"a leaf imports {name}"
            assert ARROW.index(rest[0]) > ARROW.index(path.stem), name


@pytest.mark.parametrize("path", INFRA, ids=str)
def test_the_infrastructure_imports_no_tests(path: Path) -> None:
    assert not {name for name in imports(ROOT / path) if name.split(".")[0] == "tests"}


def test_the_runtime_knows_no_database_and_the_orders_no_http() -> None:
    assert not any(re.match("sqlalchemy|asyncpg", n) for n in imports(ROOT / "handler/runtime.py"))
    assert not any(
        re.match("fastapi|starlette|mangum", n) for n in imports(ROOT / "handler/orders.py")
    )


def lines_of_code(path: Path) -> int:
    """What says why, and blank lines, make a file longer and easier."""
    source = path.read_text()
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    said = {
        number
        for node in ast.walk(ast.parse(source))
        if isinstance(node, documented) and ast.get_docstring(node)
        for number in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    lines = enumerate(source.splitlines(), 1)
    return sum(1 for n, line in lines if n not in said and not re.match(r"\s*(#|$)", line))


def test_the_handler_is_thin() -> None:
    assert max(len(path.read_text().splitlines()) for path in HANDLER) <= 200
    lengths = {path.name: lines_of_code(path) for path in HANDLER}
    assert sum(lengths.values()) <= 950, lengths


REQUIREMENTS = [
    "handler/requirements.txt",
    "infra/database/requirements.txt",
    "infra/local/requirements.txt",
    "infra/local/requirements-reports.txt",
    "tests/requirements.txt",
]
#: Each for a virtual environment of its own, and so with versions of its own.
APART = [
    "infra/aws/requirements-checkov.txt",
    "infra/aws/requirements.txt",
    "tests/requirements-emulator.txt",
]


def pins(name: str) -> dict[str, str]:
    return dict(
        re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==([^\s;]+)", (ROOT / name).read_text(), re.M)
    )


def test_every_requirement_is_pinned_once_by_hash_and_names_no_index() -> None:
    agreed: dict[str, str] = {}
    assert {str(each.relative_to(ROOT)) for each in ROOT.glob("[hit]*/**/requirements*.txt")} == {
        *REQUIREMENTS,
        *APART,
    }
    for name in REQUIREMENTS + APART:
        text = (ROOT / name).read_text()
        entries = re.findall(r"^[a-z0-9].*?(?=^[a-z0-9]|\Z)", text, re.M | re.S)
        assert entries
        assert all("--hash=sha256:" in entry for entry in entries)
        assert not re.search(r"^--|://", text, re.M)
        for package, version in pins(name).items() if name not in APART else ():
            assert agreed.setdefault(package, version) == version, (name, package)


def test_what_the_project_asks_for_is_what_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    asked = {
        "handler/requirements.txt": project["project"]["dependencies"],
        "infra/database/requirements.txt": project["dependency-groups"]["database"],
        "infra/local/requirements.txt": project["dependency-groups"]["local"],
        "tests/requirements.txt": project["dependency-groups"]["tests"],
        "infra/aws/requirements-checkov.txt": project["dependency-groups"]["checkov"],
        "infra/aws/requirements.txt": project["dependency-groups"]["aws"],
    }
    for name, wanted in asked.items():
        packages = [each for each in wanted if isinstance(each, str)]  # others include a group
        names = {re.match(r"[a-z0-9-]+", each.lower())[0] for each in packages}  # type: ignore[index]  # always matches
        assert names <= pins(name).keys(), name
