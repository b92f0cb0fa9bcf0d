"""The results of a churn run: broken promises, `reports/churn.json` (schema 2) and `churn.md`."""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil

from infra.local import ROOT
from infra.local.churn.plan import ConnectionPath, EndingScenario, Plan
from infra.local.churn.result import Result
from infra.local.churn.run import (
    CLIENT_IDLE_TIMEOUT_S,
    INVOCATIONS_PER_S,
    MAX_IDLE_S,
    RELEASE_TIMEOUT_S,
)

REPORTS = ROOT / "reports"
#: The pool and reserve of pgbouncer.ini.
POOL = 10 + 3


def broken_promises(result: Result, plan: Plan) -> list[str]:
    """Return a message for each promise that a row broke."""
    row = f"{result.path}, {result.ending}"
    if result.path == ConnectionPath.DIRECT:
        if result.failed:
            return []
        return [
            f"{row}: nothing failed, so the test proves nothing: {plan.sandboxes} sandboxes do not"
            f" exhaust {plan.max_connections} connections. Use more SANDBOXES or fewer"
            " MAX_CONNECTIONS"
        ]
    failures = []
    if result.failed:
        failures.append(
            f"{row}: {result.failed} of {result.invocations} invocations failed: {result.causes}"
        )
    if result.peak_backends > POOL:
        failures.append(
            f"{row}: {result.peak_backends} backends at the peak, above PgBouncer's pool and"
            f" reserve of {POOL}"
        )
    if result.ending == EndingScenario.GRACEFUL and result.unclean_closes:
        failures.append(f"{row}: {result.unclean_closes} clients did not close their connections")
    never = result.release_s is None and result.release_limit_s < RELEASE_TIMEOUT_S
    if never or (result.release_s or 0) > result.release_limit_s:
        duration = f"more than {RELEASE_TIMEOUT_S:g} s" if never else f"{result.release_s} s"
        failures.append(
            f"{row}: connections of ended sandboxes were closed only after {duration}, not within"
            f" {result.release_limit_s:g} s"
        )
    return failures


def write(
    results: list[Result],
    plan: Plan,
    servers: dict[str, str],
    *,
    partial: bool,
    folder: Path = REPORTS,
) -> None:
    """Write both files atomically. `servers`: the versions of the servers."""
    folder.mkdir(exist_ok=True)
    environment = _environment() | servers
    report: dict[str, Any] = {"schema": 2}
    if partial:
        report["partial"] = True
    report |= {
        "environment": environment,
        "max_connections": plan.max_connections,
        "sandboxes": plan.sandboxes,
        "deploys": plan.deploys,
        "used_fork_server": plan.uses_fork_server,
        "runs": [asdict(result) for result in results],
    }
    replace(folder / "churn.json", json.dumps(report) + "\n")
    replace(folder / "churn.md", _markdown(results, plan, environment, partial))


def replace(path: Path, text: str) -> None:
    """Write a file atomically."""
    draft = path.with_suffix(f"{path.suffix}.tmp")
    draft.write_text(text)
    draft.replace(path)


def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        **{name: version(name) for name in ("sqlalchemy", "asyncpg", "mangum", "awslambdaric")},
        "client_idle_timeout_s": CLIENT_IDLE_TIMEOUT_S,
        "max_idle_s": MAX_IDLE_S,
        "release_timeout_s": RELEASE_TIMEOUT_S,
    }


COLUMNS = (
    "path | sandboxes end | invocations | failed | most backends | held by ended sandboxes: "
    "backends, clients | until released, s (promised) | unclean closes | cold p50, ms "
    "| warm p50, ms"
)


def _markdown(results: list[Result], plan: Plan, environment: dict[str, Any], partial: bool) -> str:
    lines = [
        "# Churn",
        "",
        *(["**Partial: the run was interrupted.**", ""] if partial else []),
        f"`SANDBOXES={plan.sandboxes} MAX_CONNECTIONS={plan.max_connections} "
        f"DEPLOYS={plan.deploys} make churn`",
        "",
        f"Each row has its own Postgres and PgBouncer and {plan.sandboxes} sandboxes: a cold"
        f" burst of all at once, {INVOCATIONS_PER_S} invocations a second, then each sandbox"
        f" replaced {plan.deploys} time(s), {plan.batch_size} at a time, the new ones first."
        f" Shortened: an idle client is dropped after {CLIENT_IDLE_TIMEOUT_S} s instead of 300,"
        f" `DB_MAX_IDLE` is {MAX_IDLE_S} s instead of 240. Connections of ended sandboxes are"
        f" counted when the traffic ends, and then waited for up to {RELEASE_TIMEOUT_S:g} s."
        + (
            " **Sandboxes were forked from a process that had imported everything, so their start"
            " times are not those of cold starts.**"
            if plan.uses_fork_server
            else ""
        ),
        "",
        ", ".join(f"{name} {value}" for name, value in environment.items()),
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * len(COLUMNS.split("|")),
    ]
    for result in results:
        seconds = result.release_s
        failed = f"{result.failed} ({result.causes})" if result.failed else "0"
        released = f"{seconds:g}" if seconds is not None else f"not within {RELEASE_TIMEOUT_S:g}"
        lines.append(
            f"| {result.path} | {result.ending} | {result.invocations} "
            f"| {failed} | {result.peak_backends} "
            f"| {result.held_backends}, {result.held_clients} "
            f"| {released} ({result.release_limit_s:g}) "
            f"| {'?' if result.unclean_closes is None else result.unclean_closes} "
            f"| {result.cold_latency_ms['p50']:.0f} | {result.warm_latency_ms['p50']:.1f} |"
        )
    return "\n".join([*lines, ""])
