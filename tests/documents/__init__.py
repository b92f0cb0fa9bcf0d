"""The documents: which files they are, the tables made for them, the site, the rules for prose."""

from pathlib import Path

from infra.local import ROOT

FOLDERS = ("docs", "infra", "handler", "pgbouncer", "tests", ".github")


def documents() -> list[Path]:
    """Every Markdown file that people wrote, which leaves out `reports/`."""
    found = [
        *ROOT.glob("*.md"),
        *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md")),
    ]
    return sorted(found)


def pages(folder: str) -> dict[str, Path]:
    """The pages of `folder` by their headings."""
    found = sorted((ROOT / folder).glob("*.md"))
    return {path.read_text().partition("\n")[0].removeprefix("# "): path for path in found}


def name(path: Path) -> str:
    """`path` as it is called from the repository's root."""
    return path.relative_to(ROOT).as_posix()
