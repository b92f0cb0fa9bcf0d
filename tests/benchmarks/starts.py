"""The ways in which a cold start happens on Lambda, with FULL=1.

With the packages in the file cache or not, from a SnapStart copy, with a password from Secrets
Manager, and with an IAM token. The snapshot is the lab's: a process that is forked, not a micro-VM.
Secrets Manager and RDS Proxy are test doubles.
"""

import contextlib
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil

from infra.database.roles import APP
from infra.local import LabError
from infra.local.fleet import Sandbox
from infra.local.fleet.api_gateway import api_gateway_event
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import Stack
from tests.benchmarks import cold
from tests.benchmarks.plan import HANDLERS, Plan
from tests.faults.secret_store import REGION, SecretStore
from tests.rds_proxy import RdsProxy

Row = dict[str, Any]
EVENT = api_gateway_event("GET", "/orders/1")
SNAP_START = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}


async def measure(
    stack: Stack, bouncer: PgBouncer, plan: Plan, report_progress: Callable[[str], None]
) -> list[Row]:
    password = stack.settings().password.get_secret_value()
    plain = stack.environment(bouncer) | {"PYTHONDONTWRITEBYTECODE": "1"}
    walls: dict[tuple[str, str], list[float]] = defaultdict(list)
    mib_read: dict[tuple[str, str], list[float]] = defaultdict(list)
    async with contextlib.AsyncExitStack() as cleanup:
        scratch = Path(
            cleanup.enter_context(tempfile.TemporaryDirectory(prefix="warm-engine-bench-"))
        )
        store = cleanup.enter_context(SecretStore("app", APP, password))
        proxy = await cleanup.enter_async_context(RdsProxy(stack, scratch, _is_token))
        report_progress("starts: packages")
        folder, log = scratch / "task", scratch / "log"
        cold.fill(folder, compiled=True)
        with_secret = plain | store.environment
        with_token = with_secret | {
            "DB_AUTH": "iam",
            "DB_HOST": proxy.host,
            "DB_PORT": str(proxy.port),
            "DB_SSLMODE": "verify-full",
            "DB_SSLROOTCERT": str(proxy.ca),
            "AWS_DEFAULT_REGION": REGION,
        }
        for variables in (with_secret, with_token):
            del variables["DB_PASS"]
        starts = [
            ("files cached", "warm_engine", plain),
            ("files cached", "frameworks_only", plain),
            ("files not cached", "warm_engine", plain),
            ("files not cached", "frameworks_only", plain),
            ("SnapStart copy", "warm_engine", plain | SNAP_START),
            ("DB_AUTH=secret", "warm_engine", with_secret),
            ("DB_AUTH=iam, TLS", "warm_engine", with_token),
        ]
        for number in range(plan.rounds):
            for start, name, environment in starts:
                if start == "files not cached":
                    drop_file_cache(folder)
                wall_s, mib = await _start(HANDLERS[name], environment, folder, log)
                walls[start, name].append(wall_s)
                mib_read[start, name].append(mib)
            report_progress(f"starts: {number + 1} of {plan.rounds} of each")
    return [
        {
            "start": start,
            "handler": name,
            "wall_s": round(median(wall_s), 3),
            "mib_read": round(median(mib_read[start, name]), 1),
            "wall_s_rounds": [round(each, 4) for each in wall_s],
        }
        for (start, name), wall_s in walls.items()
    ]


def _is_token(password: str) -> bool:
    return "X-Amz-Signature=" in password


def drop_file_cache(folder: Path) -> None:
    """Remove the files of `folder`, and no others, from the kernel's cache."""
    for file in folder.rglob("*"):
        if file.is_file():
            descriptor = os.open(file, os.O_RDONLY)
            try:
                os.fsync(descriptor)  # what is not yet written stays
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)


async def _start(
    handler: str, environment: dict[str, str], folder: Path, log: Path
) -> tuple[float, float]:
    """Seconds to the first response, for a copy from its restore on; MiB read from the disk."""
    started = time.monotonic()
    sandbox = await Sandbox.start(handler, environment, root=folder, log=log)
    try:
        if "AWS_LAMBDA_INITIALIZATION_TYPE" in environment:
            await sandbox.snapshot()
            started = time.monotonic()
            await sandbox.restore(1)
        [response] = await sandbox.invoke_all([EVENT], 30)
        wall_s = time.monotonic() - started
        if response.get("statusCode") != 200:
            raise LabError(f"the handler {handler} did not serve: {response}")
        return wall_s, psutil.Process(sandbox.pid).io_counters().read_bytes / 2**20
    finally:
        await sandbox.end()
