"""`make examine`: each property in turn, with progress; then the table, the remedies, the files."""

import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import nullcontext
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

#: What one property may take, in seconds.
LIMIT_S = 120.0


def examine() -> int:
    """Runs itself again in a network of its own where it can. 1 where what was required is
    missing."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # of a real stdout
    inputs = from_environment(PROPERTIES)
    folder = report.folder_of(inputs.root)
    no_filter = None
    if not network.is_isolated() and (no_filter := network.unavailable_reason()) is None:
        inside = network.isolated_command([sys.executable, "-m", "infra.local", "examine"])
        os.execvp(inside[0], inside)  # noqa: S606  # becomes the same command
    # JSON alone on stdout; what happens meanwhile goes beside it.
    stream = sys.stderr if inputs.as_json else sys.stdout

    def say(line: str) -> None:
        print(line, file=stream, flush=True)

    with unpacked(inputs.image, inputs) if inputs.image else nullcontext(inputs) as inputs:
        where = inputs.image or inputs.root
        say(f"examining  {inputs.handler} in {where}: {len(inputs.wanted)} properties\n")
        findings, servers = measure(
            inputs, no_filter, lambda name, found: say(report.row(name, found))
        )
    made = report.make(inputs, findings, servers, _seconds_since_start())
    report.write(made, folder)
    if inputs.as_json:
        print(json.dumps(made))
    for line in ["", *report.remedies(findings)]:
        say(line)
    say(f"written    {_shown(folder)}/examine.json, .md after {made['seconds']} s")
    for name in made["missing"]:
        say(f"missing    {name}: {PROPERTIES[name].title}")
    return 1 if made["missing"] else 0


def _seconds_since_start() -> float:
    """Return the age of this process, which `execvp` does not reset."""
    return time.time() - psutil.Process().create_time()


def _shown(folder: Path) -> str:
    """Return the folder's path, but for this project's the name alone."""
    return folder.name if folder == report.REPORTS else str(folder)


def measure(
    inputs: Inputs,
    no_filter: str | None,
    report_finding: Callable[[str, Finding], None] = lambda name, finding: None,
) -> tuple[dict[str, Finding], dict[str, str]]:
    """What was found of each wanted property, and the servers' versions. Raises LabError where the
    function cannot be examined at all."""
    with (
        Stack(max_connections=MAX_CONNECTIONS) as stack,
        tempfile.TemporaryDirectory(prefix="warm-engine-examine-") as folder,
    ):
        servers = {
            "postgres": stack.postgres.version,
            "pgbouncer": ".".join(map(str, stack.pgbouncer.program.version)),
        }
        found = run_async(_measure_all, inputs, stack, Path(folder), no_filter, report_finding)
        return found, servers


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
        if lab.flooded:
            print("its log was emptied, since it grew without end", file=sys.stderr)
    return findings


async def _measure(lab: Lab, name: str) -> Finding:
    """A measurement that fails decides nothing."""
    try:
        async with asyncio.timeout(LIMIT_S):
            for need in PROPERTIES[name].needs:
                if reason := await need(lab):
                    return unknown(reason)
            return await PROPERTIES[name].measure(lab)
    except UnknownError as error:
        return unknown(str(error))
    except TimeoutError:
        return unknown(f"it was not measured within {LIMIT_S:.0f} s")
    except (LabError, OSError, asyncpg.PostgresError, psycopg.Error) as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())
        return unknown(f"the measurement failed: {words}")
