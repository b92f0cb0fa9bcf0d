"""A Jinja extension that replaces the sample's names by placeholders of the template.

`names.json` lists the names.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from jinja2.ext import Extension

NAMES = "infra/service/names.json"
#: Files that have placeholders already, or keep the sample's names.
UNCHANGED = ("infra/service/template", "LICENSE")


class Rename(Extension):
    """The extension, which `copier.yml` loads."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        loader = environment.loader
        assert isinstance(loader, FileSystemLoader)  # noqa: S101  # the kind that copier uses
        # The root of the rendered version: for a comparison copier also renders an older one.
        self._root = Path(loader.searchpath[0])
        self._names = json.loads((self._root / NAMES).read_text())

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Replace the names in a file. Strings of copier.yml have no `filename`."""
        if filename is not None and not self._is_unchanged(Path(filename).resolve()):
            for sample_name, placeholder in self._names:
                source = source.replace(sample_name, placeholder)
        return source

    def _is_unchanged(self, path: Path) -> bool:
        return any(path.is_relative_to(self._root / name) for name in UNCHANGED)
