"""A warm request: every handler in a process of its own, taking turns."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median, quantiles
from typing import Any

from infra.local import ROOT, LabError
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.benchmarks.plan import HANDLERS, REQUESTS, RTTS_MS, TURNS

Row = dict[str, Any]


class Worker:
    """The process of one handler."""

    def __init__(self, name: str, environment: dict[str, str]) -> None:
        self.name = name
        self.ms: list[float] = []
        self.cpu_ms: list[float] = []
        self.round_trips: list[float] = []
        self.rss: list[int] = []
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.benchmarks.worker", HANDLERS[name]],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # Ctrl-C is for us
        )

    def serve(self, requests: int) -> dict[str, Any]:
        process = self._process
        assert process.stdin is not None  # as asked for
        assert process.stdout is not None
        process.stdin.write(f"{requests}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise LabError(f"the handler {self.name} did not serve: see above")
        return dict(json.loads(line))

    def run_turn(self, proxy: TcpProxy | None) -> None:
        if proxy:
            proxy.reset_counters()
        report = self.serve(REQUESTS)
        self.ms += report["ms"]
        self.cpu_ms.append(report["cpu_ms"])
        self.rss.append(report["rss"])
        if proxy:
            self.round_trips.append(proxy.round_trips / REQUESTS)

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def measure(stack: Stack, bouncer: PgBouncer, report_progress: Callable[[str], None]) -> list[Row]:
    """Without delay straight to PgBouncer; with one through a proxy, which counts as well."""
    rows = []
    trips: dict[str, float] = {}
    for rtt in reversed(RTTS_MS):
        with contextlib.ExitStack() as undo:
            proxy = None
            environment = stack.environment(bouncer)
            if rtt:
                proxy = undo.enter_context(TcpProxy(bouncer.host, bouncer.port, delay=rtt / 1000))
                environment["DB_PORT"] = str(proxy.port)
            workers = [Worker(name, environment) for name in HANDLERS]
            for worker in workers:
                undo.callback(worker.stop)
                worker.serve(REQUESTS)
            for turn in range(TURNS):
                for worker in workers:
                    worker.run_turn(proxy)
                report_progress(f"warm, {rtt} ms a round trip: {turn + 1} of {TURNS} turns")
            for worker in workers:
                trips.setdefault(worker.name, median(worker.round_trips or [0]))
                cuts = quantiles(worker.ms, n=100, method="inclusive")
                rows.append(
                    {
                        "handler": worker.name,
                        "rtt_ms": rtt,
                        "p50_ms": round(cuts[49], 3),
                        "p95_ms": round(cuts[94], 3),
                        "p99_ms": round(cuts[98], 3),
                        "cpu_ms": round(median(worker.cpu_ms), 3),
                        "db_round_trips": round(trips[worker.name]),
                        # The first hundred are turns 1 to 3, and what came before them.
                        "rss_ratio_1000_to_100": round(
                            worker.rss[1000 // REQUESTS - 2] / worker.rss[2], 4
                        ),
                    }
                )
    return sorted(rows, key=lambda row: row["rtt_ms"])
