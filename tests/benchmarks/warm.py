"""Measures warm requests: the handlers take turns, each in its own process."""

import contextlib
import json
import os
import subprocess
from collections import defaultdict
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any, Self

from infra.local import ROOT, LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.benchmarks.plan import ALL_HANDLERS, REQUESTS, Plan
from tests.benchmarks.pythons import THIS_PYTHON, Python

Row = dict[str, Any]


class Worker:
    """The process of one handler."""

    def __init__(
        self, name: str, environment: dict[str, str], python: Python = THIS_PYTHON
    ) -> None:
        self.name = name
        self._process = subprocess.Popen(
            [python.path, "-m", "tests.benchmarks.worker", ALL_HANDLERS[name]],
            cwd=ROOT,
            env=os.environ | environment | python.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C interrupts only the benchmark
        )

    def serve(self, requests: int) -> dict[str, Any]:
        """Serve requests and return the report. Raises LabError if the worker has ended."""
        return self._report(str(requests))

    def imported_modules(self) -> dict[str, int]:
        """Return how many modules it has imported, and the size of their files in bytes."""
        return self._report("imported")

    def _report(self, request: str) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None  # because of stdin=PIPE and stdout=PIPE
        assert process.stdout is not None
        with contextlib.suppress(BrokenPipeError):  # it has ended, and `readline` returns nothing
            process.stdin.write(f"{request}\n")
            process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise LabError(
                f"the worker of {self.name} ended without a report: see its output above"
            )
        return dict(json.loads(line))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


class Figures:
    """The measurements of one handler in all rounds."""

    def __init__(self) -> None:
        self.ms: list[float] = []
        self.p50_ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.round_trips: list[float] = []

    def row(self) -> Row:
        cuts = quantiles(self.ms, n=100, method="inclusive")
        trips = {"db_round_trips": round(median(self.round_trips))} if self.round_trips else {}
        return {
            **trips,
            "p50_ms": round(median(self.p50_ms), 3),
            "p95_ms": round(cuts[94], 3),
            "p99_ms": round(cuts[98], 3),
            "cpu_ms": round(median(self.cpu_ms), 3),
            "p50_ms_rounds": [round(ms, 4) for ms in self.p50_ms],
            "cpu_ms_rounds": [round(ms, 4) for ms in self.cpu_ms],
        }


def measure(
    stack: Stack,
    bouncer: PgBouncer,
    plan: Plan,
    report_progress: Callable[[str], None],
    python: Python = THIS_PYTHON,
) -> list[Row]:
    """Measure each handler at each round-trip time: through a proxy if there is a delay."""
    rows = []
    for rtt, turns in plan.turns.items():
        figures: dict[str, Figures] = defaultdict(Figures)
        with TcpProxy(bouncer.host, bouncer.port, delay=rtt / 1000) as proxy:
            environment = stack.environment(bouncer)
            through_proxy = environment | {"DB_PORT": str(proxy.port)}
            for number in range(plan.rounds):
                with contextlib.ExitStack() as processes:
                    workers = [
                        processes.enter_context(
                            Worker(name, through_proxy if rtt else environment, python)
                        )
                        for name in plan.handlers
                    ]
                    _run_round(workers, turns, proxy, figures)
                report_progress(
                    f"warm, {rtt} ms per round trip: round {number + 1} of {plan.rounds}"
                )
        rows += [{"handler": name, "rtt_ms": rtt, **each.row()} for name, each in figures.items()]
    return rows


def _run_round(
    workers: list[Worker], turns: int, proxy: TcpProxy, figures: dict[str, Figures]
) -> None:
    ms: dict[str, list[float]] = defaultdict(list)
    cpu_ms: dict[str, list[float]] = defaultdict(list)
    for worker in workers:
        worker.serve(REQUESTS)
    for _ in range(turns):
        for worker in workers:
            proxy.reset_counters()
            report = worker.serve(REQUESTS)
            ms[worker.name] += report["ms"]
            cpu_ms[worker.name].append(report["cpu_ms"])
            if proxy.round_trips:  # none without a delay, where the proxy is not used
                figures[worker.name].round_trips.append(proxy.round_trips / REQUESTS)
    for name, durations in ms.items():
        figures[name].ms += durations
        figures[name].p50_ms.append(median(durations))
        figures[name].cpu_ms.append(median(cpu_ms[name]))
