"""The results of the benchmarks: `reports/bench.json` (schema 3) and `bench.md`."""

import json
import os
import platform
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import psutil

from infra.local import LabError
from infra.local.churn.report import REPORTS, replace
from tests.benchmarks.plan import (
    HANDLERS,
    REQUESTS,
    SCALE_DURATION_S,
    SERVER_CONNECTIONS,
    STAGES,
    STANDARD,
    STORM_CPUS,
    TARGETS,
)
from tests.benchmarks.ratio import Ratio

Report = dict[str, Any]
Row = dict[str, Any]
SCHEMA = 3

#: What each handler is, for a reader.
DESCRIPTIONS = {
    "warm_engine": "this handler",
    "frameworks_only": "FastAPI, Mangum and the ORM, without this engine",
    "tutorial": "`pool_pre_ping`, a transaction, both statement caches 0",
    "nullpool": "`NullPool`, a unique name for each statement",
    "async_psycopg": "psycopg 3 through SQLAlchemy, `prepare_threshold=None`",
    "fastapi_asyncpg": "asyncpg's pool in FastAPI, without SQLAlchemy",
    "bare_asyncpg": "the driver alone, without a framework: the lower bound",
}
STAGE_DESCRIPTIONS = {
    "driver": "asyncpg and one prepared statement",
    "core": "SQLAlchemy's Core and its pool",
    "orm": "a session and a mapped object",
    "fastapi": "routing, validation and the response",
    "mangum": "the event and the response of Lambda: `frameworks_only`",
    "warm_engine": "this handler: the log line, the deadline, the retry, the check of the socket",
}
STORM_TITLE = f"Storm: PgBouncer with {STORM_CPUS} CPUs, TLS 1.3, SCRAM"
METHOD = f"""\
Every handler gets the same API Gateway event and reads the same 1,000 orders through the same
PgBouncer (transaction pooling, SCRAM, no TLS), all in one run. **Warm**: {STANDARD.rounds} rounds.
Each starts a process for every handler, and the handlers take turns of {REQUESTS} requests: at 0 ms
directly to PgBouncer, at 1 ms through a proxy that delays each round trip and counts them.
**Cold**: {STANDARD.starts} starts of each handler in turn (fewer on a busy machine), under the real
runtime client, from the start of the process to its first response; compiled as the Lambda image
is, or without bytecode of packages and code. **Scale**: one engine for each client in one process,
which uses one core at most; the active clients send the next request at once.

Figures are medians of the rounds. A ratio is computed in every round; the smallest and the largest
follow in parentheses. With {STANDARD.rounds} rounds they contain the true median with a probability
of {1 - 2 ** (1 - STANDARD.rounds):.0%}. Compare rows of one run, not runs."""


def make(rows: Report, servers: dict[str, str], load: float) -> Report:
    packages = ("sqlalchemy", "asyncpg", "fastapi", "mangum", "awslambdaric")
    environment = {
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "kernel": platform.release(),
        "load_average_before": round(load, 1),
        "server_connections": SERVER_CONNECTIONS,
        "scale_duration_s": SCALE_DURATION_S,
        **servers,
        **{name: version(name) for name in packages},
    }
    return {"schema": SCHEMA, "environment": environment, **rows, "targets": targets(rows)}


def write(report: Report) -> None:
    REPORTS.mkdir(exist_ok=True)
    replace(REPORTS / "bench.json", json.dumps(report) + "\n")
    replace(REPORTS / "bench.md", _markdown(report))


def committed() -> Report:
    """Return the report in `reports/`. Raises LabError."""
    try:
        return read((REPORTS / "bench.json").read_text(errors="replace"))
    except OSError as error:
        raise LabError(f"reports/bench.json: {error.strerror}. Run: make bench") from None


def read(text: str) -> Report:
    """Return a report from its text. Raises LabError if it is corrupt or has another schema."""
    corrupt = LabError("reports/bench.json is corrupt. Run: make bench")
    try:
        report: Report = json.loads(text)
        schema = report["schema"]
    except (ValueError, LookupError, TypeError):
        raise corrupt from None
    if schema != SCHEMA:
        raise LabError(f"reports/bench.json has schema {schema}, not {SCHEMA}. Run: make bench")
    needed = {"warm", "cold", "scale", "counts", "targets", "environment"}
    columns = {"metric", "target", "measured", "low", "high"}
    if not needed <= report.keys() or not all(columns <= row.keys() for row in report["targets"]):
        raise corrupt
    return report


def by_handler(rows: list[Row], **which: Any) -> dict[str, Row]:
    """The rows with these values, by handler."""
    return {
        row["handler"]: row
        for row in rows
        if all(row[name] == value for name, value in which.items())
    }


def ratio(rows: dict[str, Row], figure: str, to: str) -> Ratio:
    rounds = f"{figure}_rounds"
    return Ratio.of(rows["warm_engine"][rounds], rows[to][rounds])


def targets(report: Report) -> list[Row]:
    """What was measured for each metric of TARGETS; without valgrind there are no instructions."""
    no_delay, with_delay = (by_handler(report["warm"], rtt_ms=rtt) for rtt in (0, 1))
    compiled = by_handler(report["cold"], compiled=True)
    measured = {
        "warm_p50_ratio_to_frameworks_only_at_0_ms": ratio(no_delay, "p50_ms", "frameworks_only"),
        "warm_p50_ratio_to_frameworks_only_at_1_ms": ratio(with_delay, "p50_ms", "frameworks_only"),
        "warm_p50_ratio_to_async_psycopg_at_1_ms": ratio(with_delay, "p50_ms", "async_psycopg"),
        "cold_cpu_ratio_to_frameworks_only_compiled": ratio(compiled, "cpu_s", "frameworks_only"),
    }
    measured |= {metric: Ratio(count, count, count) for metric, count in report["counts"].items()}
    return [
        {"metric": metric, "target": target, "stretch_target": stretch, **asdict(measured[metric])}
        for metric, (target, stretch) in TARGETS.items()
        if metric in measured
    ]


def summary(report: Report) -> list[str]:
    """The table of the handlers, for the documentation and the terminal."""
    no_delay, with_delay = (by_handler(report["warm"], rtt_ms=rtt) for rtt in (0, 1))
    compiled, not_compiled = (by_handler(report["cold"], compiled=c) for c in (True, False))
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


def stages(report: Report) -> list[str]:
    """The table of what each stage adds to a warm request without delay."""
    rows = by_handler(report["warm"], rtt_ms=0)
    whole = rows["frameworks_only"]["p50_ms"]
    lines = ["| stage | p50, ms | adds, ms | share of `frameworks_only` |", "|---|---|---|---|"]
    before = 0.0
    for stage, description in STAGE_DESCRIPTIONS.items():
        p50 = rows[_row_of(stage)]["p50_ms"]
        lines.append(
            f"| {stage}: {description} | {p50:.2f} | {p50 - before:+.2f} "
            f"| {(p50 - before) / whole:.0%} |"
        )
        before = p50
    return lines


def pythons(report: Report) -> list[str]:
    """The table of the other Pythons, without delay. Each ratio is within one Python."""
    lines = [
        "| Python | p50, ms | CPU, ms | p50 ÷ `frameworks_only` | CPU ÷ `frameworks_only` |",
        "|---|---|---|---|---|",
    ]
    for python, rows in report["pythons"].items():
        handlers = by_handler(rows)
        ours = handlers["warm_engine"]
        p50, cpu = (ratio(handlers, name, "frameworks_only") for name in ("p50_ms", "cpu_ms"))
        lines.append(f"| {python} | {ours['p50_ms']:.2f} | {ours['cpu_ms']:.2f} | {p50} | {cpu} |")
    return lines


def under_load(report: Report) -> list[str]:
    """The tables of `FULL=1`, for the documentation: the storm, clients and cold starts."""
    storm = report.get("storm")
    if storm is None:
        return ["Not measured: use `make bench FULL=1`."]
    lines = [f"Not measured: {storm}."]
    if isinstance(storm, list):
        lines = [
            "| clients at once | lookup delayed by, ms | failures | p50, s | p99, s "
            "| CPU of PgBouncer, ms a client | CPU of the clients, ms a client |",
            "|---|---|---|---|---|---|---|",
            *(f"| {' | '.join(map(str, row.values()))} |" for row in storm),
        ]
    lines += [
        "",
        "| clients | of them sending requests | PgBouncers | requests a second | p99, ms "
        "| server connections | CPUs of PgBouncer | memory of PgBouncer, bytes a client |",
        "|---|---|---|---|---|---|---|---|",
    ]
    scale = [row for row in report["scale"] if "pgbouncer_bytes_per_client" in row]
    lines += [f"| {' | '.join(map(str, row.values()))} |" for row in scale]
    bytes_per_client = scale[-1]["pgbouncer_bytes_per_client"]
    lines += [
        "",
        f"A client costs PgBouncer {bytes_per_client} bytes of memory, so 100,000 clients cost"
        f" {bytes_per_client * 100_000 / 2**20:.0f} MiB.",
        "",
        "| cold start | handler | duration, s | read from disk, MiB |",
        "|---|---|---|---|",
    ]
    for row in report["starts"]:
        lines.append(
            f"| {row['start']} | {row['handler']} | {row['wall_s']:.2f} | {row['mib_read']} |"
        )
    return lines


def _row_of(stage: str) -> str:
    """The first and the last stage are handlers that the other tables have, too."""
    names = {handler: name for name, handler in HANDLERS.items()}
    return names.get(STAGES.get(stage, ""), stage)


def target_table(report: Report) -> list[str]:
    lines = ["| metric | target | measured | reached |", "|---|---|---|---|"]
    for row in report["targets"]:
        reached = "yes" if row["measured"] <= row["target"] else "**no**"
        interval = "" if row["low"] == row["high"] else f" ({row['low']} to {row['high']})"
        lines.append(
            f"| `{row['metric']}` | {row['target']} | {row['measured']:g}{interval} | {reached} |"
        )
    return lines


def _table(rows: list[Row]) -> list[str]:
    columns = list({name: None for row in rows for name in row if not name.endswith("_rounds")})
    return [
        f"| {' | '.join(columns)} |",
        "|" + "---|" * len(columns),
        *(f"| {' | '.join(str(row.get(name, '')) for name in columns)} |" for row in rows),
    ]


def _markdown(report: Report) -> str:
    environment = report["environment"]
    lines = ["# What an order costs", "", "`make bench`", "", METHOD, ""]
    lines += [", ".join(f"{name} {value}" for name, value in environment.items()), ""]
    tables = {
        "Handlers": summary(report),
        "Stages": stages(report),
        "Targets": target_table(report),
        "Warm": _table(report["warm"]),
        "Cold": _table(report["cold"]),
        "Scale": _table(report["scale"]),
        "Counts": _table(
            [{"count": metric, "measured": count} for metric, count in report["counts"].items()]
        ),
    }
    if "pythons" in report:
        tables["Other Pythons"] = pythons(report)
    if "starts" in report:
        tables["Starts"] = _table(report["starts"])
    if storm := report.get("storm"):
        tables[STORM_TITLE] = [storm] if isinstance(storm, str) else _table(storm)
    for title, table in tables.items():
        lines += [f"## {title}", "", *table, ""]
    return "\n".join(lines)
