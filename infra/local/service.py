"""The service that the lab runs: this repository's sample, or one described by the table
`[tool.warm-engine]` in another folder's `pyproject.toml`."""

import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from infra.database import roles
from infra.local import ROOT, LabError
from infra.local.fleet import Fleet

ALLOWED = "database, owner, app, handler, event, migrate, python, environment and traffic"


@dataclass(frozen=True)
class Traffic:
    """The requests of `make faults`: an idempotent write and a read.

    `{key}` and `{value}` in paths and bodies are replaced. `headers` are sent with both requests.
    `table`: the table that the write changes. `rows`: a query for the key and value of each row
    whose key is in `$1`.
    """

    write_method: str
    write_path: str
    write_body: Mapping[str, Any]
    read_path: str
    table: str
    rows: str
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Service:
    """A service. `database`, `owner` and `app` are its database and the roles that own and use it.

    `migrate`: arguments for its interpreter that prepare the database, with the variables `DB_*`
    and `SECRETS`, a folder with a password per file; empty for the sample, which the lab migrates
    itself. `name`: the name of the function. `environment`: variables that the handler reads.
    """

    root: Path = ROOT
    python: str = sys.executable
    database: str = "storefront"
    owner: str = roles.OWNER
    app: str = roles.APP
    handler: str = "handler.main.handler"
    event_file: str = "infra/local/event.json"
    migrate: Sequence[str] = ()
    traffic: Traffic | None = None
    name: str = "warm-engine"
    environment: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def event(self) -> Any:
        """The event of `make demo` and `make churn`. Raises LabError if it cannot be read."""
        path = self.root / self.event_file
        try:
            return json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise LabError(f"{path}: {error}. It must contain a Lambda event as JSON") from None

    def fleet(self, environment: Mapping[str, str], **options: Any) -> Fleet:
        """Return a fleet of its handler; `options` are those of Fleet."""
        return Fleet(
            {"AWS_LAMBDA_FUNCTION_NAME": self.name, **self.environment, **environment},
            handler=self.handler,
            root=self.root,
            python=self.python,
            **options,
        )

    @property
    def path(self) -> str:
        """The path in the event."""
        event = self.event
        return str(event.get("rawPath", "/")) if isinstance(event, dict) else "/"

    def check_import(self) -> None:
        """Raise LabError if the handler cannot be imported."""
        module = self.handler.rpartition(".")[0]
        # Without AWS_LAMBDA_FUNCTION_NAME, which would require complete settings.
        result = subprocess.run(
            [self.python, "-c", f"import {module}"],
            cwd=self.root,
            env={"PATH": os.defpath, "LANG": "C.UTF-8", **self.environment},
            capture_output=True,
            text=True,
        )
        if result.returncode:
            reason = last_line(result.stderr)
            raise LabError(f"{module} of {self.root} cannot be imported: {reason}")


#: The sample of this repository.
SAMPLE = Service()


def find(root: Path | None) -> Service:
    """Return the service in `root`, or the sample for None. Raises LabError if it is not usable."""
    if root is None or root.resolve() == ROOT:
        return SAMPLE
    root = root.resolve()
    pyproject = root / "pyproject.toml"
    try:
        table = tomllib.loads(pyproject.read_text())["tool"]["warm-engine"]
        traffic = table.pop("traffic", None)
        service = Service(
            root=root,
            python=str(root / table.pop("python", ".venv/bin/python")),
            event_file=table.pop("event"),
            traffic=Traffic(**traffic) if traffic else None,
            name=table["database"],
            **table,
        )
        if not all(isinstance(value, str) for value in service.environment.values()):
            raise TypeError("a value in environment is not a string")
    except OSError as error:
        raise LabError(f"{pyproject}: {error.strerror}. ROOT must be a service's folder") from None
    except (tomllib.TOMLDecodeError, KeyError, TypeError, AttributeError) as error:
        raise LabError(
            f"{pyproject}: [tool.warm-engine] is missing or wrong ({error}). Allowed: {ALLOWED}"
        ) from None
    if not Path(service.python).exists():
        raise LabError(
            f"{service.python} does not exist. Run `make test` in {root}, which creates it"
        )
    service.check_import()
    return service


def last_line(text: str) -> str:
    """Return the message of the last exception in a program's output, or else its last line."""
    lines = text.strip().splitlines() or ["no output"]
    # The further lines of some exceptions, such as SQLAlchemy's, quote the statement.
    return next(filter(re.compile(r"[\w.]+(Error|Exception)\b").match, reversed(lines)), lines[-1])
