"""`make examine`: measures the properties with progress, and writes the reports."""

import asyncio
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import asyncpg
import psutil
import psycopg

from infra.local import LabError, network
from infra.local.examine import report
from infra.local.examine.finding import Finding, UnknownError, unknown
from infra.local.examine.image import unpacked
from infra.local.examine.inputs import Inputs, from_environment
from infra.local.examine.lab import MAX_CONNECTIONS, Lab
from infra.local.examine.properties import PROPERTIES
from infra.local.signals import run_async
from infra.local.stack import Stack

#: The time limit for a property, in seconds.
LIMIT_S = 120.0


def examine() -> int:
    """Examine the function, in a network namespace if possible; return 1 if it lacks a required
    property."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # of a real stdout
    inputs = from_environment(PROPERTIES)
    folder = report.folder_of(inputs.root)
    no_filter = network.enter_namespace("infra.local", "examine")
    # With JSON=1, stdout contains only the JSON.
    show = partial(print, file=sys.stderr if inputs.as_json else sys.stdout, flush=True)
    with unpacked(inputs.image, inputs) if inputs.image else nullcontext(inputs) as inputs:
        where = inputs.image or inputs.root
        show(f"examining  {inputs.handler} in {where}: {len(inputs.wanted)} properties\n")
        findings, servers = measure(
            inputs, no_filter, lambda name, finding: show(report.row(name, finding))
        )
    contents = report.make(inputs, findings, servers, _seconds_since_start())
    report.write(contents, folder)
    if inputs.as_json:
        print(json.dumps(contents))
    for line in ["", *report.remedies(findings)]:
        show(line)
    # For this project the name of the folder is enough.
    shown = folder.name if folder == report.REPORTS else folder
    show(f"written    {shown}/examine.json, .md after {contents['seconds']} s")
    for name in contents["missing"]:
        show(f"missing    {name}: {PROPERTIES[name].title}")
    return 1 if contents["missing"] else 0


def _seconds_since_start() -> float:
    """Return the age of this process, which `execvp` does not reset."""
    return time.time() - psutil.Process().create_time()


def measure(
    inputs: Inputs,
    no_filter: str | None,
    report_finding: Callable[[str, Finding], None] = lambda name, finding: None,
) -> tuple[dict[str, Finding], dict[str, str]]:
    """Return a finding for each wanted property, and the servers' versions.

    `no_filter`: why packets cannot be dropped, or None if they can. Raises LabError if the function
    fails or does not use the database.
    """
    with (
        Stack(max_connections=MAX_CONNECTIONS) as stack,
        tempfile.TemporaryDirectory(prefix="warm-engine-examine-") as folder,
    ):
        servers = {
            "postgres": stack.postgres.version,
            "pgbouncer": ".".join(map(str, stack.pgbouncer.program.version)),
        }
        findings = run_async(_measure_all, inputs, stack, Path(folder), no_filter, report_finding)
        return findings, servers


async def _measure_all(
    inputs: Inputs,
    stack: Stack,
    folder: Path,
    no_filter: str | None,
    report_finding: Callable[[str, Finding], None],
) -> dict[str, Finding]:
    findings: dict[str, Finding] = {}
    async with Lab(inputs, stack, folder, no_filter) as lab:
        for name in inputs.wanted or PROPERTIES:
            findings[name] = await _measure(lab, name)
            report_finding(name, findings[name])
        if lab.logs.was_trimmed:
            print("the function's log became too large and was emptied", file=sys.stderr)
    return findings


def _is_full(message: str) -> bool:
    """Return whether `message` contains one of Postgres' messages for SQLSTATE 53300."""
    return re.search("too many (clients|connections)|connection slots", message) is not None


async def _measure(lab: Lab, name: str) -> Finding:
    """Measure a property. If its measurement fails, the verdict is UNKNOWN."""
    try:
        async with asyncio.timeout(LIMIT_S):
            for find_obstacle in PROPERTIES[name].prerequisites:
                if obstacle := await find_obstacle(lab):
                    return unknown(obstacle)
            return await PROPERTIES[name].measure(lab)
    except UnknownError as error:
        hint = "; it opens more connections than Postgres has" if _is_full(str(error)) else ""
        return unknown(f"{error}{hint}")
    except TimeoutError:
        return unknown(f"the measurement took longer than {LIMIT_S:.0f} s")
    except (LabError, OSError, asyncpg.PostgresError, psycopg.Error) as error:
        message = " ".join(f"{type(error).__name__}: {error}".split())
        return unknown(f"the measurement failed: {message}")
