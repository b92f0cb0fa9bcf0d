"""Counts that do not depend on the machine: `python -m tests.benchmarks.counts`.

Round trips, statements, imported modules and their size, and instructions under callgrind, where
valgrind is installed. Exits with status 1 if a count is above its limit. Modules and instructions
are compared with those of `frameworks_only`, which changes with the packages and with Python, too.
"""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from infra.database.roles import APP
from infra.local import ROOT, LabError
from infra.local.examine.statements import StatementLog
from infra.local.pgbouncer import PgBouncer
from infra.local.signals import treat_sigterm_as_sigint
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.benchmarks.plan import COUNT_LIMITS, HANDLERS
from tests.benchmarks.warm import Worker
from tests.command import exit_with

#: Metric → count, difference or ratio.
Counts = dict[str, float]
STARTS, REQUESTS = 3, 20
#: Separates TLS 1.3's session tickets, which the client does not wait for: a client that sends its
#: next message only after they have arrived would count another round trip.
DELAY_S = 0.1
VALGRIND = shutil.which("valgrind")
#: Valgrind is about fifty times slower, so the defaults would time out.
PATIENT = {"DB_CONNECT_TIMEOUT": "300", "DB_COMMAND_TIMEOUT": "300"}


def measure(*, instructions: bool) -> Counts:
    """Count on a stack of its own. Raises LabError. `instructions`: takes a minute or two."""
    with (
        Stack() as stack,
        stack.postgres.administrator() as admin,
        stack.another_pgbouncer(tls=False) as bouncer,
    ):
        admin.execute(f"ALTER ROLE {APP} SET log_statement = 'all'")
        cold, warm = _round_trips(stack, bouncer)
        cold_with_tls, _ = _round_trips(stack, stack.pgbouncer)
        ours, frameworks = (_imported(stack, name) for name in ("warm_engine", "frameworks_only"))
        counts = {
            "warm_db_round_trips": warm,
            "cold_db_round_trips_without_tls": cold,
            "cold_db_round_trips_with_tls": cold_with_tls,
            "warm_statements": _statements(stack),
            "modules_more_than_frameworks_only": ours["modules"] - frameworks["modules"],
            "module_kib_more_than_frameworks_only": round(
                (ours["bytes"] - frameworks["bytes"]) / 1024
            ),
        }
        if instructions:
            counts |= _instruction_ratios(stack.environment(bouncer))
    return counts


def above_limit(counts: Counts) -> list[str]:
    """The metrics that are above their limits, a line each."""
    return [
        f"{metric} is {count:g}, above its limit of {COUNT_LIMITS[metric]:g}"
        for metric, count in counts.items()
        if count > COUNT_LIMITS[metric]
    ]


def _round_trips(stack: Stack, bouncer: PgBouncer) -> tuple[int, float]:
    """Of a cold start, and of one request after it: the smallest of a few starts.

    On a busy machine a response may arrive in two parts around a request of its client, which
    counts as another round trip.
    """
    starts = []
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        environment = stack.environment(bouncer) | {"DB_PORT": str(proxy.port)}
        for _ in range(STARTS):
            proxy.reset_counters()
            proxy.delay = DELAY_S
            with Worker("warm_engine", environment) as worker:
                worker.serve(1)
                cold, proxy.delay = proxy.round_trips, 0.0
                proxy.reset_counters()
                worker.serve(REQUESTS)
                starts.append((cold, proxy.round_trips / REQUESTS))
    cold_starts, warm_requests = zip(*starts, strict=True)
    return min(cold_starts), min(warm_requests)


def _statements(stack: Stack) -> float:
    """Of one request, directly to Postgres: PgBouncer adds its own to the log."""
    log = StatementLog(stack.postgres.log)
    with Worker("warm_engine", stack.environment(direct=True)) as worker:
        worker.serve(1)
        log.mark()
        worker.serve(REQUESTS)
        return len(log.since_mark()) / REQUESTS


def _imported(stack: Stack, name: str) -> dict[str, int]:
    with Worker(name, stack.environment(direct=True)) as worker:
        worker.serve(1)
        return worker.imported_modules()


def _instruction_ratios(environment: dict[str, str]) -> Counts:
    """Of a cold start, and of one request after it."""
    runs = [(name, warm) for name in ("warm_engine", "frameworks_only") for warm in (0, 100)]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        ours_cold, ours, theirs_cold, theirs = pool.map(
            lambda run: _instructions(environment, *run), runs
        )
    return {
        "cold_instructions_ratio_to_frameworks_only": round(ours_cold / theirs_cold, 3),
        "warm_instructions_ratio_to_frameworks_only": round(
            (ours - ours_cold) / (theirs - theirs_cold), 3
        ),
    }


def _instructions(environment: dict[str, str], name: str, warm_requests: int) -> int:
    """Start a handler, serve one request and as many more, and count the instructions."""
    assert VALGRIND is not None  # asked for only then
    done = subprocess.run(
        [
            *(VALGRIND, "--tool=callgrind", "--callgrind-out-file=/dev/null"),
            *(sys.executable, "-m", "tests.benchmarks.worker", HANDLERS[name]),
        ],
        cwd=ROOT,
        env=os.environ | environment | PATIENT | {"PYTHONHASHSEED": "0"},
        input=f"1\n{warm_requests}\n" if warm_requests else "1\n",
        capture_output=True,
        text=True,
    )
    collected = re.search(r"Collected : (\d+)", done.stderr)
    if done.returncode or collected is None:
        last_line = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise LabError(f"the handler {name} did not serve under callgrind: {last_line}")
    return int(collected[1])


def main() -> int:
    treat_sigterm_as_sigint()
    counts = measure(instructions=VALGRIND is not None)
    for metric, count in counts.items():
        print(f"{count:8g} of {COUNT_LIMITS[metric]:8g}  {metric}")
    if VALGRIND is None:
        print("instructions were not counted: valgrind is not installed")
    failures = above_limit(counts)
    print("\n".join(failures), file=sys.stderr)
    return 1 if failures else 0


if __name__ == "__main__":
    exit_with(main)
