"""`make recipes`: every recipe examined in one run: `reports/recipes.md` and `recipes.json`."""

import json
import os
import sys
import time
from typing import Any

from infra.local import LabError, network
from infra.local.churn.report import replace
from infra.local.examine import report
from infra.local.examine.command import measure
from infra.local.examine.finding import Finding, Verdict
from infra.local.examine.properties import PROPERTIES
from infra.local.signals import treat_sigterm_as_sigint
from tests.examine import plot
from tests.examine.recipes import RECIPES, inputs_of

SHOWN = {Verdict.YES: "yes", Verdict.NO: "**no**", Verdict.UNKNOWN: "?"}


def main() -> int:
    treat_sigterm_as_sigint()
    no_filter = None
    if not network.is_isolated() and (no_filter := network.unavailable_reason()) is None:
        inside = network.isolated_command([sys.executable, "-m", "tests.examine"])
        os.execvp(inside[0], inside)  # noqa: S606  # becomes the same command
    chosen = os.environ.get("ONLY", "").split(",") if os.environ.get("ONLY") else list(RECIPES)
    fast = os.environ.get("FAST") == "1"
    found: dict[str, dict[str, Finding]] = {}
    started = time.monotonic()
    for name in chosen:
        print(f"\n{name}", flush=True)
        found[name], servers = measure(
            inputs_of(name, fast=fast),
            no_filter,
            lambda each, finding: print(report.row(each, finding), flush=True),
        )
    made = make(found, servers, fast, time.monotonic() - started)
    replace(report.REPORTS / "recipes.json", json.dumps(made, indent=1) + "\n")
    replace(report.REPORTS / "recipes.md", markdown(made))
    plot.draw()
    print(f"\nwritten    reports/recipes.json, .md, .png after {made['seconds']} s")
    return 0


def make(
    found: dict[str, dict[str, Finding]], servers: dict[str, str], fast: bool, seconds: float
) -> dict[str, Any]:
    """The report as JSON has it."""
    recipes = []
    for name, findings in found.items():
        one = report.make(inputs_of(name, fast=fast), findings, servers, seconds)
        recipes.append({"name": name, "handler": one["handler"], "properties": one["properties"]})
    environment = one["environment"]
    return {
        "schema": 1,
        "fast": fast,
        "seconds": round(seconds),
        "environment": environment,
        "recipes": recipes,
    }


def markdown(made: dict[str, Any]) -> str:
    recipes, environment = made["recipes"], made["environment"]
    lines = [
        "# Recipes",
        "",
        f"Ways to reach Postgres from Lambda that the web recommends, each examined by"
        f" `make recipes` in one run of {made['seconds']} s. What a property means:"
        " [docs/examine.md](../docs/examine.md). `?` could not be told, most often since another"
        " property is missing; the reason is below.",
        "",
        ", ".join(f"{name} {value}" for name, value in environment.items()),
        "",
        "| property | " + " | ".join(each["name"] for each in recipes) + " |",
        "|---|" + "---|" * len(recipes),
    ]
    columns = [{row["name"]: row for row in each["properties"]} for each in recipes]
    for name in PROPERTIES:
        cells = [SHOWN[Verdict(column[name]["verdict"])] for column in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    for each, column in zip(recipes, columns, strict=True):
        lines += ["", f"## {each['name']}", "", f"`{each['handler']}`", ""]
        for name, row in column.items():
            words = row["reason"] or row["measured"]
            lines.append(f"- `{name}` {row['verdict']}: {words}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"warm-engine: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
