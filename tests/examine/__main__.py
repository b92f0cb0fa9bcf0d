"""`make recipes`: examine the recipes (`ONLY` selects some); write `reports/recipes.*`."""

import json
import os
import sys
import time
from typing import Any

from infra.local import network
from infra.local.churn.report import replace
from infra.local.examine import report
from infra.local.examine.command import measure
from infra.local.examine.finding import Finding, Verdict
from infra.local.examine.properties import PROPERTIES
from infra.local.signals import treat_sigterm_as_sigint
from tests.command import exit_with
from tests.examine import plot
from tests.examine.recipes import RECIPES, inputs_of

VERDICT_LABELS = {Verdict.YES: "yes", Verdict.NO: "**no**", Verdict.UNKNOWN: "?"}


def main() -> int:
    treat_sigterm_as_sigint()
    no_filter = None
    if not network.is_isolated() and (no_filter := network.unavailable_reason()) is None:
        command = network.isolated_command([sys.executable, "-m", "tests.examine"])
        os.execvp(command[0], command)  # noqa: S606  # our own command, which needs no shell
    names = os.environ["ONLY"].split(",") if os.environ.get("ONLY") else list(RECIPES)
    fast = os.environ.get("FAST") == "1"
    findings: dict[str, dict[str, Finding]] = {}
    started = time.monotonic()
    for name in names:
        print(f"\n{name}", flush=True)
        findings[name], servers = measure(
            inputs_of(name, fast=fast),
            no_filter,
            lambda property_name, finding: print(report.row(property_name, finding), flush=True),
        )
    content = make(findings, servers, fast, time.monotonic() - started)
    replace(report.REPORTS / "recipes.json", json.dumps(content, indent=1) + "\n")
    replace(report.REPORTS / "recipes.md", markdown(content))
    plot.draw()
    print(f"\nwritten    reports/recipes.json, .md, .png after {content['seconds']} s")
    return 0


def make(
    findings: dict[str, dict[str, Finding]], servers: dict[str, str], fast: bool, seconds: float
) -> dict[str, Any]:
    """Return the content of the JSON report."""
    recipes = []
    for name, recipe_findings in findings.items():
        recipe = report.make(inputs_of(name, fast=fast), recipe_findings, servers, seconds)
        recipes.append(
            {"name": name, "handler": recipe["handler"], "properties": recipe["properties"]}
        )
    return {
        "schema": 1,
        "fast": fast,
        "seconds": round(seconds),
        "environment": recipe["environment"],
        "recipes": recipes,
    }


def markdown(content: dict[str, Any]) -> str:
    recipes, environment = content["recipes"], content["environment"]
    lines = [
        "# Recipes",
        "",
        f"Ways to reach Postgres from Lambda that the web recommends, each examined by"
        f" `make recipes` in one run of {content['seconds']} s. What a property means:"
        " [docs/examine.md](../docs/examine.md). `?` could not be told, most often since another"
        " property is missing; the reason is below.",
        "",
        ", ".join(f"{name} {value}" for name, value in environment.items()),
        "",
        "| property | " + " | ".join(recipe["name"] for recipe in recipes) + " |",
        "|---|" + "---|" * len(recipes),
    ]
    columns = [{row["name"]: row for row in recipe["properties"]} for recipe in recipes]
    for name in PROPERTIES:
        cells = [VERDICT_LABELS[Verdict(column[name]["verdict"])] for column in columns]
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    for recipe, column in zip(recipes, columns, strict=True):
        lines += ["", f"## {recipe['name']}", "", f"`{recipe['handler']}`", ""]
        for name, row in column.items():
            explanation = row["reason"] or row["measured"]
            lines.append(f"- `{name}` {row['verdict']}: {explanation}")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    exit_with(main)
