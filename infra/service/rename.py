"""Turns the sample's names into placeholders, so that a service is rendered from its files.

Which names: `names.json`, of the version that is rendered.
"""

import json
from pathlib import Path

from jinja2 import Environment, FileSystemLoader
from jinja2.ext import Extension

NAMES = "infra/service/names.json"
#: Files of these say what they mean themselves.
OWN = ("infra/service/template", "LICENSE")


class Rename(Extension):
    """An extension of Jinja's. `copier.yml` names it."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        loader = environment.loader
        assert isinstance(loader, FileSystemLoader)  # noqa: S101  # copier's is one
        # The older version's own list, when copier renders that to compare.
        self._root = Path(loader.searchpath[0])
        self._names = json.loads((self._root / NAMES).read_text())

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Called with each template, and with strings of copier.yml, which have no file."""
        if filename is not None and not self._is_own(Path(filename).resolve()):
            for old, new in self._names:
                source = source.replace(old, new)
        return source

    def _is_own(self, path: Path) -> bool:
        return any(path.is_relative_to(self._root / own) for own in OWN)
