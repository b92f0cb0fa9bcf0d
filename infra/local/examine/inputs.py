"""The settings of `make examine`, from environment variables that are checked before the start."""

import json
import os
import re
import shlex
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local import ROOT, LabError
from infra.local.fleet.interpreter import client_command

DEFAULT_HANDLER = "handler.main.handler"
DEFAULT_EVENT = ROOT / "infra/local/event.json"
#: The function's variables unless `ENV` overrides them. The lab replaces the names in braces.
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


def _read_events(value: str) -> tuple[Any, ...]:
    """Read a JSON file, or all JSON files in a folder."""
    path = Path(value)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        raise LabError(f"EVENT is {value!r}: there is no *.json in that folder")
    events = []
    for file in files:
        try:
            events.append(json.loads(file.read_text()))
        except OSError as error:
            raise LabError(f"EVENT is {value!r}: {error.strerror}") from None
        except ValueError as error:
            raise LabError(f"EVENT: {file} is not JSON: {error}") from None
    return tuple(events)


@dataclass(frozen=True)
class Inputs:
    """The settings. `events` are sent in turn, with a new value for `{key}` each time. `variables`:
    the function's environment with names in braces. `wanted`: the properties to measure.
    `required`: those without which the exit status is 1."""

    handler: str = DEFAULT_HANDLER
    root: Path = ROOT
    python: str = sys.executable
    image: str = ""
    events: tuple[Any, ...] = field(default_factory=lambda: _read_events(str(DEFAULT_EVENT)))
    variables: Mapping[str, str] = field(default_factory=lambda: DEFAULT_VARIABLES)
    schema: Path | None = None
    wanted: tuple[str, ...] = ()
    required: tuple[str, ...] = ()
    fast: bool = False
    as_json: bool = False

    def environment(self, values: Mapping[str, str]) -> dict[str, str]:
        """Return the function's environment without variables that would be empty."""
        environment = {
            name: re.sub(r"\{(\w+)\}", lambda match: values.get(match[1], match[0]), template)
            for name, template in self.variables.items()
        }
        return {name: value for name, value in environment.items() if value}


def from_environment(
    properties: Iterable[str], environment: Mapping[str, str] = os.environ
) -> Inputs:
    """Return the settings. Raises LabError for the first bad variable."""
    known = tuple(properties)
    if environment.get("IMAGE") and (environment.get("ROOT") or environment.get("PYTHON")):
        raise LabError("IMAGE has the code and the interpreter: leave out ROOT and PYTHON")
    handler = environment.get("HANDLER") or DEFAULT_HANDLER
    if not re.fullmatch(r"[\w/-]+(\.\w+)+", handler):
        raise LabError(f"HANDLER is {handler!r}: not a module and a function, such as app.handler")
    root = Path(environment.get("ROOT") or ROOT).resolve()
    if not root.is_dir():
        raise LabError(f"ROOT is {str(root)!r}: there is no such folder")
    only, skip, required = (
        _read_names(name, environment.get(name), known) for name in ("ONLY", "SKIP", "REQUIRE")
    )
    wanted = tuple(name for name in known if name in (only or known) and name not in skip)
    if environment.get("REQUIRE") == "all":
        required = wanted
    for name in required:
        if name not in wanted:
            raise LabError(f"REQUIRE names {name}, which ONLY or SKIP leaves out")
    return Inputs(
        handler=handler,
        root=root,
        python=_find_python(environment.get("PYTHON")),
        image=environment.get("IMAGE") or "",
        events=_read_events(environment.get("EVENT") or str(DEFAULT_EVENT)),
        variables=DEFAULT_VARIABLES | _read_variables(environment.get("ENV") or ""),
        schema=_find_schema(environment.get("SCHEMA")),
        wanted=wanted,
        required=required,
        fast=environment.get("FAST") == "1",
        as_json=environment.get("JSON") == "1",
    )


def _find_python(value: str | None) -> str:
    if not value:
        return sys.executable
    # Not resolved, because the interpreter of a virtual environment is a link to the system's.
    python = str(Path(value).absolute()) if "/" in value else value
    client_command(python, "check", "")  # raises LabError if it cannot be used
    return python


def _find_schema(value: str | None) -> Path | None:
    if not value:
        return None
    schema = Path(value).resolve()
    try:
        schema.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise LabError(f"SCHEMA cannot be read: {error}") from None
    return schema


def _read_names(variable: str, value: str | None, known: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of properties in a variable, separated by spaces or commas."""
    if value == "all":
        return known
    names = tuple(re.split(r"[\s,]+", value.strip())) if value and value.strip() else ()
    for name in names:
        if name not in known:
            raise LabError(f"{variable} names {name!r}. Properties are: {', '.join(known)}")
    return names


def _read_variables(value: str) -> dict[str, str]:
    """Read `NAME=value` pairs: words of `value`, or lines of the file that it names."""
    if "=" in value and not Path(value).exists():
        try:
            pairs = shlex.split(value)
        except ValueError as error:
            raise LabError(f"ENV cannot be read: {error}") from None
    elif value:
        try:
            lines = [line.strip() for line in Path(value).read_text().splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise LabError(f"ENV is {value!r}: {error}") from None
        pairs = [line for line in lines if line and not line.startswith("#")]
    else:
        return {}
    variables = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not re.fullmatch(r"[A-Za-z_]\w*", name):
            raise LabError(f"ENV has {name!r}, which is not NAME=value")
        variables[name] = text
    return variables
