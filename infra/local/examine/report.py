"""The results of an examination: rows for the terminal, `examine.json` and `examine.md`.

docs/examine.schema.json describes the JSON.
"""

import json
import os
import platform
import textwrap
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from infra.local import ROOT, LabError
from infra.local.churn.report import replace
from infra.local.examine.finding import Finding, Verdict
from infra.local.examine.inputs import Inputs
from infra.local.examine.properties import PROPERTIES

REPORTS = ROOT / "reports"
SCHEMA = 1


def make(
    inputs: Inputs, findings: Mapping[str, Finding], servers: Mapping[str, str], seconds: float
) -> dict[str, Any]:
    """Return the contents of `examine.json`, without paths because it may be published."""
    return {
        "schema": SCHEMA,
        "handler": inputs.handler,
        "fast": inputs.fast,
        "seconds": round(seconds),
        "environment": {
            "python": platform.python_version(),
            "cores": os.cpu_count(),
            "kernel": platform.release(),
            **servers,
        },
        "required": list(inputs.required),
        "missing": missing(inputs, findings),
        "properties": [
            {"name": name, "title": PROPERTIES[name].title, **asdict(finding)}
            for name, finding in findings.items()
        ],
    }


def missing(inputs: Inputs, findings: Mapping[str, Finding]) -> list[str]:
    """Return the required properties without a "yes"."""
    return [
        name
        for name in inputs.required
        if name not in findings or findings[name].verdict is not Verdict.YES
    ]


def folder_of(root: Path) -> Path:
    """Return the folder for the report on the function in `root`; LabError if not writable."""
    folder = root / REPORTS.name
    if not os.access(folder if folder.exists() else root, os.W_OK | os.X_OK):
        raise LabError(f"the report cannot be written to {folder}")
    return folder


def write(report: Mapping[str, Any], folder: Path = REPORTS) -> None:
    """Write both files, each of them atomically."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "examine.json", json.dumps(report, indent=1) + "\n")
    replace(folder / "examine.md", markdown(report, has_documentation=folder == REPORTS))


def row(name: str, finding: Finding) -> str:
    """Return a property's row of the table on the terminal."""
    return f"{name:14} {finding.verdict:15} {finding.reason or finding.measured}"


def remedies(findings: Mapping[str, Finding]) -> list[str]:
    """Return lines with the consequences and remedies of missing properties."""
    lines = []
    for name, finding in findings.items():
        if finding.verdict is Verdict.NO:
            for consequence, remedy in PROPERTIES[name].advice(finding.numbers):
                lines += [f"{name}: {consequence}", textwrap.indent(remedy, "  "), ""]
    return lines


def markdown(report: Mapping[str, Any], *, has_documentation: bool = True) -> str:
    """Return the report as Markdown. `has_documentation`: `docs` is in the parent folder."""
    explanation = (
        "[docs/examine.md](../docs/examine.md)" if has_documentation else "docs/examine.md"
    )
    lines = [
        "# Examination",
        "",
        f"`{report['handler']}`, by `make examine{' FAST=1' if report['fast'] else ''}` in"
        f" {report['seconds']} s. {explanation} explains the properties.",
        "",
        ", ".join(f"{name} {value}" for name, value in report["environment"].items()),
        "",
        "| property | verdict | measured |",
        "|---|---|---|",
    ]
    advice: list[str] = []
    for result in report["properties"]:
        name, verdict = result["name"], result["verdict"]
        measured = (result["reason"] or result["measured"]).replace("|", "\\|")
        lines.append(f"| `{name}`: {result['title']} | **{verdict}** | {measured} |")
        if verdict == Verdict.NO:
            advice += ["", f"### `{name}`"]
            for consequence, remedy in PROPERTIES[name].advice(result["numbers"]):
                text, _, code = remedy.partition("\n")
                advice += ["", consequence, "", text]
                for line in code.splitlines():
                    advice += [line] if line.startswith("    ") else ["", line]
    if advice:
        lines += ["", "## What to change", *advice]
    return "\n".join([*lines, ""])
