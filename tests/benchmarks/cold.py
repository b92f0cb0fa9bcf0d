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
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from infra.local import ROOT, LabError
from infra.local.fleet import Fleet
from infra.local.fleet.http_front_end import api_gateway_event
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.benchmarks.plan import COLD_TIME_LIMIT_S, HANDLERS, MIN_STARTS, STARTS

Row = dict[str, Any]


async def measure(
    stack: Stack, bouncer: PgBouncer, report_progress: Callable[[str], None]
) -> list[Row]:
    with (
        tempfile.TemporaryDirectory(prefix="warm-engine-bench-") as scratch,
        TcpProxy(bouncer.host, bouncer.port) as proxy,
    ):
        tasks = {compiled: Path(scratch) / str(compiled) for compiled in (True, False)}
        for compiled, folder in tasks.items():
            report_progress(f"cold: packages, {'compiled' if compiled else 'not compiled'}")
            _fill(folder, compiled)
        environment = stack.environment(bouncer) | {
            "DB_PORT": str(proxy.port),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        seen: dict[tuple[str, bool], list[tuple[float, float, int]]] = {}
        started = time.monotonic()
        for number in range(STARTS):
            if number >= MIN_STARTS and time.monotonic() - started > COLD_TIME_LIMIT_S:
                break
            for compiled, folder in tasks.items():
                for name in HANDLERS:
                    start = await _start(HANDLERS[name], environment, folder, proxy)
                    seen.setdefault((name, compiled), []).append(start)
                    report_progress(f"cold: {number + 1} of {STARTS} starts of each")
    return [
        {
            "handler": name,
            "compiled": compiled,
            "wall_s": round(median(wall for wall, _, _ in starts), 3),
            "cpu_s": round(median(cpu for _, cpu, _ in starts), 3),
            "db_round_trips": round(median(trips for _, _, trips in starts)),
        }
        for (name, compiled), starts in seen.items()
    ]


async def _start(
    module: str, environment: dict[str, str], folder: Path, proxy: TcpProxy
) -> tuple[float, float, int]:
    logs = folder.parent
    async with Fleet(environment, handler=f"{module}.handler", logs=logs, root=folder) as fleet:
        proxy.reset_counters()
        started = time.monotonic()
        answer = await fleet.invoke(api_gateway_event("GET", "/orders/1"))
        wall = time.monotonic() - started
        if answer.error or answer.payload["statusCode"] != 200:
            raise LabError(f"the handler {module} did not serve: {answer.payload}")
        used = psutil.Process(answer.pid).cpu_times()
        return wall, used.user + used.system, proxy.round_trips


def _fill(folder: Path, compiled: bool) -> None:
    """What the image's Dockerfile puts into /var/task, and the baselines."""
    pinned = (ROOT / "handler/requirements.txt").read_text()
    for name in re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==", pinned, re.M):
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
