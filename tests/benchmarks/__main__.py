"""`make bench`: warm, cold, scale and counts in turn, with progress.

Eight minutes at most. `FULL=1` adds the other Pythons, the storm, 10,000 clients on one and on four
PgBouncers, and more ways to start. `FAST=1` compares with the committed report instead of writing a
new one: two minutes at most, and exit status 1 if a ratio is worse.
"""

import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from infra.local import LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.signals import run_async, treat_sigterm_as_sigint
from infra.local.stack import Stack
from tests.benchmarks import cold, counts, plot, pythons, report, scale, storm, warm
from tests.benchmarks.compare import compare
from tests.benchmarks.plan import FAST, FULL, OTHER_PYTHON, SERVER_CONNECTIONS, STANDARD, Plan
from tests.command import exit_with


def main() -> int:
    treat_sigterm_as_sigint()
    if os.environ.get("FAST"):
        return _compare()
    load, started = os.getloadavg()[0], time.monotonic()
    made = report.make(*_measure(FULL if os.environ.get("FULL") else STANDARD), load)
    report.write(made)
    plot.draw()
    for table in (report.summary(made), report.stages(made), report.target_table(made)):
        print("\n".join(table), end="\n\n")
    print(f"written  reports/bench.json, .md, .png after {time.monotonic() - started:.0f} s")
    return 0


def _compare() -> int:
    committed = report.committed()
    rows, _ = _measure(FAST)
    comparisons = compare(committed["targets"], report.targets(rows))
    print("\n".join(map(str, comparisons)))
    return 1 if any(each.is_worse for each in comparisons) else 0


def _measure(plan: Plan) -> tuple[report.Report, dict[str, str]]:
    """Return the rows, and the versions of the servers."""
    most_clients = max((clients for clients, _, _ in plan.scales), default=0)
    scale.allow_many_sockets(most_clients)
    sizes: dict[str, str | int] = {
        "default_pool_size": SERVER_CONNECTIONS,
        "reserve_pool_size": 0,
        "max_client_conn": most_clients + 100,
        # One process opens the connections of all clients, and works at them in turn.
        "client_login_timeout": 30,
    }
    with (
        # disable=None: without a terminal, where each redrawing would be a line of a log.
        tqdm(bar_format="{elapsed}  {desc}", disable=None) as bar,
        Stack(max_connections=SERVER_CONNECTIONS + 10) as stack,
        stack.another_pgbouncer(tls=False, settings=sizes) as bouncer,
    ):

        def report_progress(message: str) -> None:
            if bar.disable:
                print(message, flush=True)
            bar.set_description_str(message)

        rows: report.Report = {
            "warm": warm.measure(stack, bouncer, plan, report_progress),
            "cold": run_async(cold.measure, stack, bouncer, plan, report_progress),
            "scale": run_async(scale.measure, stack, sizes, plan, report_progress),
        }
        if plan is FULL:
            from tests.benchmarks import starts  # needs the packages of the tests

            rows["pythons"] = _other_pythons(stack, bouncer, report_progress)
            rows["starts"] = run_async(starts.measure, stack, bouncer, plan, report_progress)
            rows["storm"] = _storm(stack, report_progress)
        report_progress("counts")
        instructions = counts.VALGRIND is not None and plan is not FAST
        rows["counts"] = counts.measure(instructions=instructions)
        return rows, {
            "postgres": stack.postgres.version,
            "pgbouncer": ".".join(map(str, bouncer.program.version)),
        }


def _storm(stack: Stack, report_progress: Callable[[str], None]) -> list[report.Row] | str:
    """Return the rows, or why there are none."""
    try:
        return storm.measure(stack, report_progress)
    except LabError as error:
        report_progress(f"storm: left out: {error}")
        return str(error)


def _other_pythons(
    stack: Stack, bouncer: PgBouncer, report_progress: Callable[[str], None]
) -> dict[str, list[report.Row]]:
    with tempfile.TemporaryDirectory(prefix="warm-engine-bench-") as scratch:
        return {
            version: warm.measure(stack, bouncer, OTHER_PYTHON, report_progress, python)
            for version, python in pythons.installed(Path(scratch), report_progress).items()
        }


if __name__ == "__main__":
    exit_with(main)
