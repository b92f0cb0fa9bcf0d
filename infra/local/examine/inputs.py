"""What is examined, and how: the variables of `make examine`, checked before anything starts."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infra.local import ROOT, LabError
from infra.local.fleet.interpreter import client_command

DEFAULT_HANDLER = "handler.main.handler"
DEFAULT_EVENT = ROOT / "infra/local/event.json"
#: What a function is configured with where `ENV` says nothing else.
DEFAULT_VARIABLES = {
    "DB_HOST": "{host}",
    "DB_PORT": "{port}",
    "DB_NAME": "{name}",
    "DB_USER": "{user}",
    "DB_PASS": "{password}",
    "DB_SSLMODE": "{sslmode}",
    "DB_SSLROOTCERT": "{ca}",
    "DATABASE_URL": "{url}",
}
#: What may stand in a variable, in braces.
PLACES = ("host", "port", "name", "user", "password", "url", "ca", "sslmode")


@dataclass(frozen=True)
class Inputs:
    """`events`: sent in turn; `{key}` in a text of one is another value in each invocation.
    `variables`: the function's environment, with PLACES to be filled in. `wanted`, `required`:
    properties."""

    handler: str = DEFAULT_HANDLER
    root: Path = ROOT
    python: str = sys.executable
    image: str = ""
    events: tuple[Any, ...] = ()
    variables: Mapping[str, str] = None  # type: ignore[assignment]  # see __post_init__
    schema: Path | None = None
    schema_text: str = ""
    wanted: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    fast: bool = False
    as_json: bool = False

    def __post_init__(self) -> None:
        if self.variables is None:
            object.__setattr__(self, "variables", DEFAULT_VARIABLES)
        if not self.events:
            object.__setattr__(self, "events", tuple(_events(str(DEFAULT_EVENT))))

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """The function's environment; a variable that would be empty is left out."""
        filled = {
            name: re.sub(r"\{(\w+)\}", lambda found: values.get(found[1], found[0]), template)
            for name, template in self.variables.items()
        }
        return {name: value for name, value in filled.items() if value}


def from_environment(properties: Iterable[str], given: Mapping[str, str] = os.environ) -> Inputs:
    """Raises LabError, in one line, for the first variable that is wrong."""
    known = tuple(properties)
    if given.get("IMAGE") and (given.get("ROOT") or given.get("PYTHON")):
        raise LabError("IMAGE has the code and the interpreter: leave out ROOT and PYTHON")
    handler = given.get("HANDLER") or DEFAULT_HANDLER
    if not re.fullmatch(r"[\w/-]+(\.\w+)+", handler):
        raise LabError(f"HANDLER is {handler!r}: not a module and a function, such as app.handler")
    root = Path(given.get("ROOT") or ROOT).resolve()
    if not root.is_dir():
        raise LabError(f"ROOT is {str(root)!r}: there is no such folder")
    python = _python(given.get("PYTHON"))
    schema = Path(given["SCHEMA"]).resolve() if given.get("SCHEMA") else None
    try:
        schema_text = schema.read_text() if schema is not None else ""
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"SCHEMA cannot be read: {error}") from None
    only, skip = (_names(name, given.get(name), known) for name in ("ONLY", "SKIP"))
    required = _names("REQUIRE", given.get("REQUIRE"), known)
    wanted = tuple(name for name in known if name in (only or known) and name not in skip)
    if left_out := [name for name in required if name not in wanted]:
        if given.get("REQUIRE") != "all":
            raise LabError(f"REQUIRE names {left_out[0]}, which ONLY or SKIP leaves out")
        required = wanted
    return Inputs(
        handler=handler,
        root=root,
        python=python,
        image=given.get("IMAGE") or "",
        events=tuple(_events(given.get("EVENT") or str(DEFAULT_EVENT))),
        variables=DEFAULT_VARIABLES | _variables(given.get("ENV") or ""),
        schema=schema,
        schema_text=schema_text,
        wanted=wanted,
        required=required,
        fast=given.get("FAST") == "1",
        as_json=given.get("JSON") == "1",
    )


def _python(given: str | None) -> str:
    if not given:
        return sys.executable
    # Made absolute, but not resolved: a virtual environment's is a link to the system's.
    python = str(Path(given).absolute()) if "/" in given else given
    client_command(python, "check", "")  # which raises LabError where it cannot be used
    return python


def _names(variable: str, given: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    if given == "all":
        return known
    names = tuple(re.split(r"[\s,]+", given.strip())) if given and given.strip() else ()
    for name in names:
        if name not in known:
            raise LabError(f"{variable} names {name!r}. Properties are: {', '.join(known)}")
    return names


def _variables(given: str) -> dict[str, str]:
    """Of a file with a `NAME=value` on each line, or of such words."""
    if "=" in given and not Path(given).exists():
        try:
            pairs = shlex.split(given)
        except ValueError as error:
            raise LabError(f"ENV cannot be read: {error}") from None
    elif given:
        try:
            lines = Path(given).read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"ENV is {given!r}: {error}") from None
        pairs = [
            line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")
        ]
    else:
        return {}
    found = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise LabError(f"ENV has {pair.partition('=')[0]!r}, which is not NAME=value")
        found[name] = value
    return found


def _events(given: str) -> list[Any]:
    """Of a JSON file, or of each in a folder."""
    path = Path(given)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise LabError(f"EVENT is {given!r}: there is no *.json in that folder")
    events = []
    for file in files:
        try:
            events.append(json.loads(file.read_text()))
        except OSError as error:
            raise LabError(f"EVENT is {given!r}: {error.strerror}") from None
        except ValueError as error:
            raise LabError(f"EVENT: {file} is not JSON: {error}") from None
    return events
