"""Many sandboxes connect at the same moment to one PgBouncer with a quarter of a CPU.

The clients are threads that use libpq, which needs less CPU time than asyncpg: on Lambda each
sandbox has a CPU of its own, but here they share this machine's. Their CPU time is reported, too.
"""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from statistics import quantiles
from threading import Barrier
from typing import Any

import psutil
import psycopg

from infra.local.cpu_quota import cpu_quota
from infra.local.stack import Stack
from tests.benchmarks.plan import SLOW_LOOKUP_MS, STORM_CPUS, STORMS

Row = dict[str, Any]


def measure(stack: Stack, report_progress: Callable[[str], None]) -> list[Row]:
    """TLS 1.3 and SCRAM, each storm against a new PgBouncer. Raises LabError without a quota."""
    rows = []
    for lookup_delay_ms in (0, SLOW_LOOKUP_MS):
        for clients in STORMS:
            report_progress(f"storm: {clients} clients, lookups delayed by {lookup_delay_ms} ms")
            rows.append(_measure_one(stack, clients, lookup_delay_ms))
    return rows


def _measure_one(stack: Stack, clients: int, lookup_delay_ms: int) -> Row:
    settings = stack.settings()
    pgbouncer_settings: dict[str, str | int] = {"max_client_conn": clients + 100}
    if lookup_delay_ms:
        delay = f"pg_sleep({lookup_delay_ms / 1000})"
        pgbouncer_settings["auth_query"] = f"SELECT role, verifier FROM pooler.lookup($1), {delay}"
    with stack.another_pgbouncer(settings=pgbouncer_settings) as bouncer:
        assert bouncer.process is not None  # started
        pooler, this_process = psutil.Process(bouncer.process.pid), psutil.Process()
        start = Barrier(clients)

        def connect(_: int) -> float | None:
            """Seconds until the connection is usable, or None after DB_CONNECT_TIMEOUT."""
            start.wait()
            started = time.perf_counter()
            try:
                connection = psycopg.connect(
                    host=bouncer.host,
                    port=bouncer.port,
                    dbname=settings.name,
                    user=settings.user,
                    password=settings.password.get_secret_value(),
                    sslmode="verify-full",
                    sslrootcert=str(bouncer.ca),
                    connect_timeout=round(settings.connect_timeout),
                )
            except psycopg.OperationalError:
                return None
            duration = time.perf_counter() - started
            connection.close()
            return duration

        with cpu_quota(pooler.pid, STORM_CPUS), ThreadPoolExecutor(clients) as pool:
            before = _cpu_s(pooler), _cpu_s(this_process)
            durations = list(pool.map(connect, range(clients)))
            pooler_s, clients_s = _cpu_s(pooler) - before[0], _cpu_s(this_process) - before[1]
    connected = [duration for duration in durations if duration is not None]
    cuts = quantiles(connected, n=100, method="inclusive") if len(connected) > 1 else [0.0] * 99
    return {
        "clients": clients,
        "lookup_delay_ms": lookup_delay_ms,
        "failures": clients - len(connected),
        "p50_s": round(cuts[49], 2),
        "p99_s": round(cuts[98], 2),
        "pgbouncer_cpu_ms_per_client": round(pooler_s * 1000 / clients, 2),
        "clients_cpu_ms_per_client": round(clients_s * 1000 / clients, 2),
    }


def _cpu_s(process: psutil.Process) -> float:
    used = process.cpu_times()
    return float(used.user + used.system)
