"""`make status`: the connections and locks of PgBouncer and Postgres as one table.

docs/operations.md explains the table.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import datetime

import asyncpg
import psycopg

from handler.warm.log_safety import escape
from infra.local import ROOT, LabError, compose, signals, stack, status_rows
from infra.local.status_rows import Record, Response, Row

#: The timeout for each server, in seconds.
SERVER_TIMEOUT_S = 3.0
REFRESH_SECONDS = 2.0
#: The width of lines for files and pipes.
UNLIMITED_WIDTH = 1000
CLEAR = "\x1b[H\x1b[2J"
HEADINGS = ("where", "who", "state", "count", "for, s", "what")

ACTIVITY = """
SELECT pid, usename, application_name, coalesce(host(client_addr), 'socket') AS address,
  client_port, coalesce(state, 'starting') AS state, wait_event_type, wait_event,
  extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change))::float8 AS seconds,
  pg_blocking_pids(pid) AS blockers, left(query, 300) AS query
FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
#: Without superusers, to whom the limit does not apply.
ROLES = """
SELECT rolname, rolconnlimit, (SELECT count(*) FROM pg_stat_activity
  WHERE usename = rolname AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS held
FROM pg_roles WHERE rolconnlimit >= 0 AND rolcanlogin AND NOT rolsuper ORDER BY rolname
"""
LIMITS = """
SELECT current_setting('max_connections')::int AS connections,
  current_setting('superuser_reserved_connections')::int AS reserved
"""


@dataclass(frozen=True)
class Target:
    """A stack and how to connect to its servers."""

    name: str
    postgres: Record  # for asyncpg
    console: Record  # for psycopg


def native() -> Target | None:
    """Return the stack of `make run`, or None if it is not running."""
    try:
        endpoints = stack.read_endpoints(stack.ENDPOINTS)
    except LabError:
        return None
    ca = endpoints["env"].get("DB_SSLROOTCERT")
    tls = {"sslmode": "verify-full", "sslrootcert": ca} if ca else {"sslmode": "disable"}
    admin = endpoints["admin"]
    return Target("make run", endpoints["postgres"] | admin, endpoints["pgbouncer"] | admin | tls)


def is_compose_up() -> bool:
    """Return whether the stack of `make up` is running; False without Docker."""
    command = ["docker", "compose", "ps", "--quiet", "--status", "running", "postgres"]
    try:
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(result.stdout.strip())


def status(chosen: str | None) -> int:
    """Print the table once or, on a terminal, until Ctrl-C. `chosen`: see `on_stack`."""
    return on_stack("status", chosen, _show)


def on_stack(command: str, chosen: str | None, function: Callable[[Target], int]) -> int:
    """Call `function` with the running stack. For Compose's, run `command` in its network.

    `chosen`: "run" or "up" to choose one of two running stacks. Raises LabError if no stack is
    running, or if two are and none was chosen.
    """
    if compose.is_inside_compose():
        return function(Target("make up", compose.admin_login(), compose.console_login()))
    native_target = native() if chosen != "up" else None
    has_containers = chosen != "run" and is_compose_up()
    if native_target and has_containers:
        raise LabError(f"two stacks are up. Choose one: make {command} STACK=run, or STACK=up")
    if native_target:
        return function(native_target)
    if has_containers:
        # Both servers can only be reached in its network.
        run = ["docker", "compose", "run", "--rm", "--no-deps"]
        terminal = [] if sys.stdin.isatty() else ["-T"]
        return subprocess.run([*run, *terminal, "churn", command], cwd=ROOT, check=False).returncode
    raise LabError("no stack is up. Start one in another terminal: make run, or make up")


def _show(target: Target) -> int:
    if not sys.stdout.isatty():
        text, complete = signals.run_async(_table, target)
        print(text)
        return 0 if complete else 1
    while True:
        text, _ = signals.run_async(_table, target)
        print(f"{CLEAR}{text}\n\nPress Ctrl-C to stop", flush=True)
        time.sleep(REFRESH_SECONDS)


async def _table(target: Target) -> tuple[str, bool]:
    """Return the current table and whether both servers responded."""
    responses = await asyncio.gather(
        _response_or_error("PgBouncer", _query_pooler(target.console)),
        _response_or_error("Postgres", _query_postgres(target.postgres)),
    )
    errors = [response for response in responses if isinstance(response, str)]
    pooler, postgres = ({} if isinstance(response, str) else response for response in responses)
    activity = postgres.get("ACTIVITY", [])
    rows = [
        *status_rows.limit_rows(pooler),
        *status_rows.stopped_rows(pooler),
        *status_rows.pool_rows(pooler),
        *status_rows.client_rows(pooler),
        *status_rows.server_rows(pooler, activity),
    ]
    if postgres:
        # Without PgBouncer's response it is unknown which connections are direct.
        rows += status_rows.direct_rows("direct" if pooler else "Postgres", pooler, activity)
        rows += status_rows.role_rows(postgres["ROLES"])
        [limits] = postgres["LIMITS"]
        what = f"connections; the last {limits['reserved']} are kept for superusers"
        level = status_rows.fill_level(len(activity), limits["connections"], limits["reserved"])
        rows.append(("Postgres", "all", level, "", "", what))
    heading = f"{target.name}, {datetime.now():%H:%M:%S}"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else UNLIMITED_WIDTH
    return "\n".join([heading, *errors, "", *_formatted(rows, width)]), not errors


async def _response_or_error(name: str, query: Awaitable[Response]) -> Response | str:
    """Return a server's response, or a line that says why there was none."""
    try:
        async with asyncio.timeout(SERVER_TIMEOUT_S):
            return await query
    except TimeoutError:
        seconds = f"{SERVER_TIMEOUT_S:.0f} s"
        return f"{name} did not respond within {seconds}: check whether it is stopped"
    except (OSError, asyncpg.PostgresError, psycopg.Error) as error:
        return f"{name} does not respond: {reason(error)}"


def reason(error: Exception) -> str:
    """Return the message of a server or driver as one line."""
    return escape(" ".join(str(error).split()) or type(error).__name__)


async def _query_pooler(login: Record) -> Response:
    # The console only supports the simple protocol.
    async with await psycopg.AsyncConnection.connect(
        dbname="pgbouncer",
        autocommit=True,
        cursor_factory=psycopg.AsyncClientCursor,
        row_factory=psycopg.rows.dict_row,
        **login,
    ) as console:
        return {
            table: await (await console.execute(f"SHOW {table}")).fetchall()
            for table in ("POOLS", "CLIENTS", "SERVERS", "DATABASES", "LISTS", "CONFIG")
        }


async def _query_postgres(login: Record) -> Response:
    connection = await asyncpg.connect(**login, database="postgres")
    try:
        return {
            name: [dict(row) for row in await connection.fetch(query)]
            for name, query in (("LIMITS", LIMITS), ("ROLES", ROLES), ("ACTIVITY", ACTIVITY))
        }
    finally:
        connection.terminate()


def _formatted(rows: Iterable[Row], width: int) -> list[str]:
    """Return lines cut to `width`; on a narrow terminal the last column has a line of its own."""
    table = [HEADINGS, *(tuple(escape(cell) for cell in row) for row in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADINGS) - 1)]
    narrow = sum(widths) + 2 * len(widths) + 60 > width
    lines = []
    for row in table:
        cells = [
            cell.rjust(size) if column in (3, 4) else cell.ljust(size)
            for column, (cell, size) in enumerate(zip(row, widths, strict=False))
        ]
        parts = ["  ".join(cells), f"  {row[-1]}"] if narrow else ["  ".join([*cells, row[-1]])]
        lines += [part.rstrip()[:width] for part in parts if part.strip()]
    return lines
