"""What came of an examination: the table on the terminal, `examine.json` and `examine.md`.

The JSON is described by docs/examine.schema.json.
"""

import json
import os
import platform
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
    """The report as JSON has it. Folders are left out: it may be published."""
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
    """What is required and was not seen."""
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
    """Both files, each at once or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    replace(folder / "examine.json", json.dumps(report, indent=1) + "\n")
    replace(folder / "examine.md", markdown(report, is_linked=folder == REPORTS))


def row(name: str, finding: Finding) -> str:
    """A property's line of the table."""
    return f"{name:14} {finding.verdict:15} {finding.reason or finding.measured}"


def remedies(findings: Mapping[str, Finding]) -> list[str]:
    lines = []
    for name, finding in findings.items():
        if finding.verdict is Verdict.NO:
            for cost, remedy in PROPERTIES[name].advice(finding.numbers):
                lines += [f"{name}: {cost}", *_indented(remedy), ""]
    return lines


def _indented(text: str) -> list[str]:
    return [f"  {line}" for line in text.splitlines()]


def markdown(report: Mapping[str, Any], *, is_linked: bool = True) -> str:
    """Return the report as Markdown. `is_linked`: the documentation is beside it."""
    explained = "[docs/examine.md](../docs/examine.md)" if is_linked else "docs/examine.md"
    versions = ", ".join(f"{name} {value}" for name, value in report["environment"].items())
    lines = [
        "# Examined",
        "",
        f"`{report['handler']}`, by `make examine{' FAST=1' if report['fast'] else ''}` in"
        f" {report['seconds']} s. What each property means: {explained}.",
        "",
        versions,
        "",
        "| property | verdict | measured |",
        "|---|---|---|",
    ]
    for each in report["properties"]:
        words = (each["reason"] or each["measured"]).replace("|", "\\|")
        lines.append(f"| `{each['name']}`: {each['title']} | **{each['verdict']}** | {words} |")
    lacking = [each for each in report["properties"] if each["verdict"] == Verdict.NO]
    if lacking:
        lines += ["", "## What to change"]
    for each in lacking:
        lines += ["", f"### `{each['name']}`"]
        for cost, remedy in PROPERTIES[each["name"]].advice(each["numbers"]):
            text, _, code = remedy.partition("\n")
            lines += ["", cost, "", text]
            for line in code.splitlines():
                lines += [line] if line.startswith("    ") else ["", line]
    return "\n".join([*lines, ""])
