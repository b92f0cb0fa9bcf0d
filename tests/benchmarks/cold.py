"""A cold start: process start to first answer, under the real runtime client.

The packages and the code lie in a folder of their own, as in /var/task: once with bytecode beside
them and once without, where nothing may be written, as in an image that was not compiled.
"""

import compileall
import py_compile
import re
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from statistics import median
from typing import Any

from infra.local import ROOT, LabError
from infra.local.fleet import Fleet
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.benchmarks.plan import HANDLERS, Plan

Row = dict[str, Any]


@dataclass(frozen=True)
class Start:
    """One cold start: seconds to the first response, CPU seconds, round trips."""

    wall_s: float
    cpu_s: float
    round_trips: int


async def measure(
    stack: Stack, bouncer: PgBouncer, plan: Plan, report_progress: Callable[[str], None]
) -> list[Row]:
    handlers = {name: HANDLERS[name] for name in plan.handlers if name in HANDLERS}
    with (
        tempfile.TemporaryDirectory(prefix="warm-engine-bench-") as scratch,
        TcpProxy(bouncer.host, bouncer.port) as proxy,
    ):
        folders = {compiled: Path(scratch) / str(compiled) for compiled in plan.compiled}
        for compiled, folder in folders.items():
            report_progress(f"cold: packages, {'compiled' if compiled else 'not compiled'}")
            fill(folder, compiled)
        environment = stack.environment(bouncer) | {
            "DB_PORT": str(proxy.port),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        starts: dict[tuple[str, bool], list[Start]] = defaultdict(list)
        started = time.monotonic()
        for number in range(plan.starts):
            if number >= plan.rounds and time.monotonic() - started > plan.cold_limit_s:
                break
            for compiled, folder in folders.items():
                for name, handler in handlers.items():
                    starts[name, compiled].append(await _start(handler, environment, folder, proxy))
            report_progress(f"cold: {number + 1} of {plan.starts} starts of each handler")
    return [
        {"handler": name, "compiled": compiled, **_row(made)}
        for (name, compiled), made in starts.items()
    ]


def _row(starts: list[Start]) -> Row:
    return {
        "wall_s": round(median(start.wall_s for start in starts), 3),
        "cpu_s": round(median(start.cpu_s for start in starts), 3),
        # On a busy machine a response in two parts may count as another round trip.
        "db_round_trips": min(start.round_trips for start in starts),
        "cpu_s_rounds": [round(start.cpu_s, 4) for start in starts],
    }


async def _start(handler: str, environment: dict[str, str], folder: Path, proxy: TcpProxy) -> Start:
    async with Fleet(environment, handler=handler, logs=folder.parent, root=folder) as fleet:
        proxy.reset_counters()
        started = time.monotonic()
        response = await fleet.invoke(api_gateway_event("GET", "/orders/1"))
        wall_s = time.monotonic() - started
        if response.error or response.payload["statusCode"] != 200:
            raise LabError(f"the handler {handler} did not serve: {response.payload}")
        return Start(wall_s, _cpu_s(response.pid), proxy.round_trips)


def _cpu_s(pid: int) -> float:
    """The CPU time of a process's threads. `/proc/PID/stat` would count in steps of 10 ms."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9


def fill(folder: Path, compiled: bool) -> None:
    """What the image's Dockerfile puts into /var/task, and the baselines with their driver."""
    pinned = (ROOT / "handler/requirements.txt").read_text()
    packages = re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==", pinned, re.M)
    for name in [*packages, "psycopg", "psycopg-binary"]:
        for file in distribution(name).files or ():
            if ".." in file.parts or file.suffix == ".pyc" or ".dist-info" in file.parts[0]:
                continue
            target = folder / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(str(file.locate()), target)
    shutil.copytree(ROOT / "handler", folder / "handler", ignore=_bytecode)
    (folder / "tests").mkdir()
    shutil.copy2(ROOT / "tests/__init__.py", folder / "tests")
    shutil.copytree(ROOT / "tests/benchmarks", folder / "tests/benchmarks", ignore=_bytecode)
    if compiled:
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(folder, quiet=2, workers=0, invalidation_mode=unchecked)


_bytecode = shutil.ignore_patterns("__pycache__")
