"""What came of the benchmarks: `reports/bench.json` (schema 2) and `bench.md`."""

import json
import os
import platform
from importlib.metadata import version
from typing import Any

import psutil

from infra.local.churn.report import REPORTS, replace
from tests.benchmarks.plan import (
    HANDLERS,
    REQUESTS,
    SCALE_DURATION_S,
    SERVER_CONNECTIONS,
    STARTS,
    TARGETS,
    TURNS,
)

Report = dict[str, Any]

#: What each handler is, for a reader.
DESCRIPTIONS = {
    "warm_engine": "this handler",
    "frameworks_only": "FastAPI, Mangum and the ORM, without this engine",
    "tutorial": "`pool_pre_ping`, a transaction, both statement caches 0",
    "nullpool": "`NullPool`, a unique name for each statement",
    "bare_asyncpg": "the driver alone, without a framework: the lower bound",
}
METHOD = f"""\
Every handler gets the same API Gateway event and reads the same 1,000 orders through the same
PgBouncer (transaction pooling, SCRAM, no TLS), all in one run. **Warm**: a process each, {TURNS}
turns of {REQUESTS} requests, the handlers taking turns, so that noise meets all alike; at 0 ms
straight to PgBouncer, at 1 ms through a proxy that delays each round trip and counts them.
**Cold**: {STARTS} starts of each (fewer on a busy machine), in turn, under the real runtime
client, from the start of the process to its first answer; compiled as the Lambda image is, or
with no bytecode of packages and code, and nothing written. **Scale**: as many engines as clients
in one process, whose one core is the limit; the busy ones ask again at once. Figures are medians
where nothing else is said. The machine's load is not ours to choose: compare rows of one run,
not runs."""


def make(rows: Report, servers: dict[str, str], load: float) -> Report:
    environment = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "load_average_before": round(load, 1),
        "server_connections": SERVER_CONNECTIONS,
        "scale_duration_s": SCALE_DURATION_S,
        **servers,
        **{name: version(name) for name in ("sqlalchemy", "asyncpg", "fastapi", "mangum")},
        "awslambdaric": version("awslambdaric"),
    }
    return {"schema": 2, "environment": environment, **rows, "targets": _targets(rows)}


def write(report: Report) -> None:
    REPORTS.mkdir(exist_ok=True)
    replace(REPORTS / "bench.json", json.dumps(report) + "\n")
    replace(REPORTS / "bench.md", _markdown(report))


def _by_handler(rows: list[dict[str, Any]], **which: Any) -> dict[str, dict[str, Any]]:
    return {
        row["handler"]: row
        for row in rows
        if all(row[name] == value for name, value in which.items())
    }


def _targets(report: Report) -> list[dict[str, Any]]:
    """What it must reach, and what it did."""
    no_delay, with_delay = (_by_handler(report["warm"], rtt_ms=rtt) for rtt in (0, 1))
    compiled, not_compiled = (_by_handler(report["cold"], compiled=c) for c in (True, False))

    def ratio(rows: dict[str, dict[str, Any]], figure: str, to: str) -> float:
        return float(rows["warm_engine"][figure] / rows[to][figure])

    measurements = [
        with_delay["warm_engine"]["db_round_trips"],
        compiled["warm_engine"]["db_round_trips"],
        ratio(no_delay, "p50_ms", "tutorial"),
        ratio(with_delay, "p50_ms", "tutorial"),
        ratio(no_delay, "p50_ms", "bare_asyncpg"),
        ratio(with_delay, "p50_ms", "bare_asyncpg"),
        ratio(no_delay, "cpu_ms", "tutorial"),
        # The tutorial's engine as it is mostly deployed, against this handler as its image is.
        compiled["warm_engine"]["cpu_s"] / not_compiled["tutorial"]["cpu_s"],
        ratio(compiled, "cpu_s", "tutorial"),
        no_delay["warm_engine"]["rss_ratio_1000_to_100"],
    ]
    return [
        {
            "metric": metric,
            "target": target,
            "stretch_target": stretch_target,
            "measured": round(measured, 3),
        }
        for (metric, (target, stretch_target)), measured in zip(
            TARGETS.items(), measurements, strict=True
        )
    ]


def summary(report: Report) -> list[str]:
    """The table that the README shows, too."""
    no_delay, with_delay = (_by_handler(report["warm"], rtt_ms=rtt) for rtt in (0, 1))
    compiled, not_compiled = (_by_handler(report["cold"], compiled=c) for c in (True, False))
    lines = [
        "| handler | round trips, warm | p50, ms, at 0 / 1 ms a round trip | CPU, ms "
        "| round trips, cold | cold CPU, s, compiled / not |",
        "|---|---|---|---|---|---|",
    ]
    for name in HANDLERS:
        lines.append(
            f"| {name}: {DESCRIPTIONS[name]} | {with_delay[name]['db_round_trips']} "
            f"| {no_delay[name]['p50_ms']:.2f} / {with_delay[name]['p50_ms']:.2f} "
            f"| {no_delay[name]['cpu_ms']:.2f} | {compiled[name]['db_round_trips']} "
            f"| {compiled[name]['cpu_s']:.2f} / {not_compiled[name]['cpu_s']:.2f} |"
        )
    return lines


def _table(rows: list[dict[str, Any]]) -> list[str]:
    columns = list({name: None for row in rows for name in row})
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(str(row.get(name, '')) for name in columns)} |" for row in rows),
    ]


def _markdown(report: Report) -> str:
    environment = report["environment"]
    lines = ["# What an order costs", "", "`make bench`", "", METHOD, ""]
    lines += [", ".join(f"{name} {value}" for name, value in environment.items()), ""]
    lines += [*summary(report), ""]
    for title, rows in (
        ("What it was to reach", report["targets"]),
        ("Warm", report["warm"]),
        ("Cold", report["cold"]),
        ("Scale", report["scale"]),
    ):
        lines += [f"## {title}", "", *_table(rows), ""]
    return "\n".join(lines)
