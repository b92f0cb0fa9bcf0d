"""What came of a churn: the promises it kept or broke, the table and the files.

Owns `reports/churn.json` (schema 1) and `churn.md`. Leaves the picture to `plot`.
"""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path as File
from typing import Any

import psutil

from infra.local import ROOT
from infra.local.churn.plan import Path, Plan, Row
from infra.local.churn.run import CLIENT_IDLE_TIMEOUT, HORIZON, MAX_IDLE, RATE, Result

REPORTS = ROOT / "reports"
#: What pgbouncer.ini allows the application towards Postgres: pool and reserve.
POOL = 10 + 3


def broken(result: Result, plan: Plan) -> list[str]:
    """The promises that a row broke, in words; none where all were kept."""
    row = f"{result.path}, {result.ending}"
    if result.path == Path.DIRECT:
        if result.failed:
            return []
        return [
            f"{row}: nothing failed, so the provocation does not work: {plan.sandboxes} sandboxes"
            f" do not fill {plan.max_connections} connections. Ask for more SANDBOXES or for"
            " fewer MAX_CONNECTIONS"
        ]
    faults = []
    if result.failed:
        causes = ", ".join(f"{count} × {cause}" for cause, count in result.failures.items())
        faults.append(
            f"{row}: {result.failed} of {result.invocations} invocations failed: {causes}"
        )
    if result.peak_backends > POOL:
        faults.append(
            f"{row}: {result.peak_backends} backends at the peak, above PgBouncer's pool and"
            f" reserve of {POOL}"
        )
    if result.ending == Row.GRACEFUL and result.unclean_closes:
        faults.append(f"{row}: {result.unclean_closes} clients left without a goodbye")
    held = result.release_seconds is None and result.release_bound_seconds < HORIZON
    if held or (result.release_seconds or 0) > result.release_bound_seconds:
        took = "longer" if held else f"{result.release_seconds} s"
        faults.append(
            f"{row}: what ended sandboxes held was free after {took}, not after"
            f" {result.release_bound_seconds:g} s at most"
        )
    return faults


def write(
    results: list[Result],
    plan: Plan,
    servers: dict[str, str],
    *,
    partial: bool,
    folder: File = REPORTS,
) -> None:
    """Both files, each at once or not at all. `servers`: their versions."""
    folder.mkdir(exist_ok=True)
    environment = _environment() | servers
    report: dict[str, Any] = {"schema": 1}
    if partial:
        report["partial"] = True
    report |= {
        "environment": environment,
        "max_connections": plan.max_connections,
        "sandboxes": plan.sandboxes,
        "deploys": plan.deploys,
        "forked": plan.forked,
        "runs": [asdict(result) for result in results],
    }
    replace(folder / "churn.json", json.dumps(report) + "\n")
    replace(folder / "churn.md", _markdown(results, plan, environment, partial))


def replace(path: File, text: str) -> None:
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
        "client_idle_timeout_s": CLIENT_IDLE_TIMEOUT,
        "max_idle_s": MAX_IDLE,
        "horizon_s": HORIZON,
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
        f"Each row has a Postgres and a PgBouncer of its own and {plan.sandboxes} sandboxes: a cold"
        f" burst of all at once, {RATE} invocations a second, then each sandbox replaced"
        f" {plan.deploys} time(s), {plan.batch} at a time, the new ones first. Time-lapse: an idle"
        f" client is dropped after {CLIENT_IDLE_TIMEOUT} s instead of 300, `DB_MAX_IDLE` is"
        f" {MAX_IDLE} s instead of 240. What is held is counted when the traffic ends, and waited"
        f" for {HORIZON:g} s."
        + (
            " **Sandboxes were forked from one that had imported everything: how long their"
            " starts took is no figure of a cold start.**"
            if plan.forked
            else ""
        ),
        "",
        ", ".join(f"{name} {value}" for name, value in environment.items()),
        "",
        f"| {COLUMNS} |",
        "|" + "---|" * len(COLUMNS.split("|")),
    ]
    for result in results:
        seconds = result.release_seconds
        failed = f"{result.failed} ({result.causes})" if result.failed else "0"
        released = f"{seconds:g}" if seconds is not None else f"not within {HORIZON:g}"
        lines.append(
            f"| {result.path} | {result.ending} | {result.invocations} "
            f"| {failed} | {result.peak_backends} "
            f"| {result.backends_after}, {result.clients_after} "
            f"| {released} ({result.release_bound_seconds:g}) "
            f"| {'?' if result.unclean_closes is None else result.unclean_closes} "
            f"| {result.cold_ms['p50']:.0f} | {result.warm_ms['p50']:.1f} |"
        )
    return "\n".join([*lines, ""])
