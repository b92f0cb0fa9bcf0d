"""`make status`: the connections and locks of PgBouncer and Postgres as one table.

It combines what both servers know of a server connection. docs/operations.md explains the table.
"""

import asyncio
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import asyncpg
import psycopg

from handler.warm.log_safety import escape
from infra.local import ROOT, LabError, compose, signals, stack

#: The timeout for each server, in seconds.
SERVER_TIMEOUT_S = 3.0
REFRESH_SECONDS = 2.0
#: The width for files and pipes.
WIDE = 1000
CLEAR = "\x1b[H\x1b[2J"
HEADINGS = ("where", "who", "state", "count", "for, s", "what")
Row = tuple[str, str, str, str, str, str]
Record = dict[str, Any]

ACTIVITY = """
SELECT pid, usename, application_name, coalesce(host(client_addr), 'socket') AS address,
  client_port, coalesce(state, 'starting') AS state, wait_event_type, wait_event,
  extract(epoch FROM clock_timestamp() - coalesce(xact_start, state_change))::float8 AS seconds,
  pg_blocking_pids(pid) AS blockers, left(query, 300) AS query
FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()
"""
#: The limit does not apply to superusers.
ROLES = """
SELECT rolname, rolconnlimit, (SELECT count(*) FROM pg_stat_activity
  WHERE usename = rolname AND backend_type = 'client backend' AND pid <> pg_backend_pid()) AS held
FROM pg_roles WHERE rolconnlimit >= 0 AND rolcanlogin AND NOT rolsuper ORDER BY rolname
"""


@dataclass(frozen=True)
class Target:
    """A stack and how to connect to its servers."""

    name: str
    postgres: Record  # for asyncpg
    console: Record  # for psycopg


def native() -> Target | None:
    """Return the stack of `make run`, if it is running."""
    try:
        up = stack.read_endpoints(stack.ENDPOINTS)
    except LabError:
        return None
    ca = up["env"].get("DB_SSLROOTCERT")
    tls = {"sslmode": "verify-full", "sslrootcert": ca} if ca else {"sslmode": "disable"}
    return Target(
        "make run", up["postgres"] | up["admin"], {**up["pgbouncer"], **up["admin"], **tls}
    )


def is_compose_up() -> bool:
    """Return whether the stack of `make up` is running; False without Docker."""
    command = ["docker", "compose", "ps", "--quiet", "--status", "running", "postgres"]
    try:
        found = subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return bool(found.stdout.strip())


def status(wanted: str | None) -> int:
    """Print the table once or, on a terminal, until Ctrl-C. `wanted`: see `on_stack`."""
    return on_stack("status", wanted, _show)


def on_stack(command: str, wanted: str | None, function: Callable[[Target], int]) -> int:
    """Call `function` with the running stack. For Compose's, run `command` in its network.

    `wanted` is "run" or "up". Raises LabError if no stack is running, or two and none was chosen.
    """
    if compose.is_inside_compose():
        return function(Target("make up", compose.admin_login(), compose.console_login()))
    own = native() if wanted != "up" else None
    containers = wanted != "run" and is_compose_up()
    if own and containers:
        raise LabError(f"two stacks are up. Choose one: make {command} STACK=run, or STACK=up")
    if own:
        return function(own)
    if containers:
        # In its network, where both servers are reachable.
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
        print(f"{CLEAR}{text}\n\nCtrl-C ends it", flush=True)
        time.sleep(REFRESH_SECONDS)


async def _table(target: Target) -> tuple[str, bool]:
    """Return the current table and whether both servers responded."""
    pooler, postgres = await asyncio.gather(
        _answer("PgBouncer", _ask_pooler(target.console)),
        _answer("Postgres", _ask_postgres(target.postgres)),
    )
    faults = [each for each in (pooler, postgres) if isinstance(each, str)]
    known = pooler if isinstance(pooler, dict) else {}
    limit, reserved, roles, activity = postgres if isinstance(postgres, tuple) else (0, 0, [], [])
    rows = [
        *_limits(known),
        *_stopped(known),
        *_pools(known),
        *_clients(known),
        *_servers(known, activity),
    ]
    if not isinstance(postgres, str):
        rows += _direct(known, activity, isinstance(pooler, str))
        rows += _roles(roles)
        what = f"connections; the last {reserved} are kept for superusers"
        filled = _filled(len(activity), limit, reserved)
        rows.append(("Postgres", "all", filled, "", "", what))
    heading = f"{target.name}, {datetime.now():%H:%M:%S}"
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else WIDE
    return "\n".join([heading, *faults, "", *_formatted(rows, width)]), not faults


async def _answer(name: str, asking: Any) -> Any:
    """Return a server's response, or a line that says why there was none."""
    try:
        async with asyncio.timeout(SERVER_TIMEOUT_S):
            return await asking
    except TimeoutError:
        seconds = f"{SERVER_TIMEOUT_S:.0f} s"
        return f"{name} does not respond within {seconds}: check whether it is stopped"
    except (OSError, asyncpg.PostgresError, psycopg.Error) as error:
        return f"{name} does not respond: {reason(error)}"


def reason(error: Exception) -> str:
    """Return the message of a server or driver as one line."""
    return escape(" ".join(str(error).split()) or type(error).__name__)


async def _ask_pooler(login: Record) -> dict[str, list[Record]]:
    # The console only supports the simple protocol.
    async with await psycopg.AsyncConnection.connect(
        dbname="pgbouncer",
        autocommit=True,
        cursor_factory=psycopg.AsyncClientCursor,
        row_factory=psycopg.rows.dict_row,
        **login,
    ) as console:
        answers = {}
        for table in ("POOLS", "CLIENTS", "SERVERS", "DATABASES", "LISTS", "CONFIG"):
            answers[table] = await (await console.execute(f"SHOW {table}")).fetchall()
        return answers


async def _ask_postgres(login: Record) -> tuple[int, int, list[Record], list[Record]]:
    connection = await asyncpg.connect(**login, database="postgres")
    try:
        limit = int(await connection.fetchval("SHOW max_connections"))
        reserved = int(await connection.fetchval("SHOW superuser_reserved_connections"))
        roles = [dict(row) for row in await connection.fetch(ROLES)]
        return limit, reserved, roles, [dict(row) for row in await connection.fetch(ACTIVITY)]
    finally:
        connection.terminate()


def _limits(known: dict[str, list[Record]]) -> Iterable[Row]:
    if known:
        count = {each["list"]: each["items"] for each in known["LISTS"]}
        limit = {each["key"]: each["value"] for each in known["CONFIG"]}["max_client_conn"]
        what = f"clients; {count['login_clients']} of them have not logged in"
        others = count["used_clients"] - 1  # without this command's own
        yield ("PgBouncer", "all", _filled(others, int(limit)), "", "", what)


def _stopped(known: dict[str, list[Record]]) -> Iterable[Row]:
    """Yield databases whose clients wait (`PAUSE`, `KILL`) or are refused (`DISABLE`)."""
    for database in known.get("DATABASES", []):
        for column, undo in (("paused", "RESUME"), ("disabled", "ENABLE")):
            if database[column]:
                name = database["name"]
                yield ("PgBouncer", name, column.upper(), "", "", f"{undo} {name}")


def _filled(count: int, limit: int, reserved: int = 0) -> str:
    full = "FULL, " if count >= limit - reserved else ""
    return f"{full}{count} of {limit}"


def _pools(known: dict[str, list[Record]]) -> Iterable[Row]:
    sizes = {each["name"]: each for each in known.get("DATABASES", [])}
    for pool in known.get("POOLS", []):
        if pool["database"] == "pgbouncer":
            continue
        servers = {name: pool[f"sv_{name}"] for name in ("active", "idle", "used", "login")}
        size = sizes[pool["database"]]
        reserve = size.get("reserve_pool_size", size.get("reserve_pool"))
        at_most = f"of {size['pool_size']} and {reserve} in reserve"
        yield (
            "pool",
            f"{pool['user']} on {pool['database']}",
            f"{pool['cl_waiting']} waiting",
            str(pool["cl_active"] + pool["cl_waiting"]),
            _seconds(pool["maxwait"] + pool["maxwait_us"] / 1e6),
            f"servers: {', '.join(f'{servers[name]} {name}' for name in servers)}, {at_most}",
        )


def _clients(known: dict[str, list[Record]]) -> Iterable[Row]:
    """Yield clients by owner and state, largest group first."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for client in known.get("CLIENTS", []):
        if client["database"] == "pgbouncer":
            continue
        state, since = client["state"], _age(client["request_time"])
        if state == "waiting":
            since = client["wait"] + client["wait_us"] / 1e6
        elif state == "active" and not client["link"]:
            state = "idle"  # PgBouncer shows every logged-in client as active
        groups[_owner(client["user"], client), state, client["addr"]].append(since)
    for (who, state, address), ages in sorted(groups.items(), key=lambda each: -len(each[1])):
        yield ("client", who, state, str(len(ages)), _seconds(max(ages)), f"from {address}")


def _roles(roles: list[Record]) -> Iterable[Row]:
    for role in roles:
        filled = _filled(role["held"], role["rolconnlimit"])
        yield ("role", role["rolname"], filled, "", "", "connections; the role's CONNECTION LIMIT")


def _owner(user: str, named: Record) -> str:
    return f"{user}, {named.get('application_name') or 'unnamed'}"


def _servers(known: dict[str, list[Record]], activity: list[Record]) -> Iterable[Row]:
    """Yield each server connection with its backend's work and its client."""
    backends = {each["pid"]: each for each in activity}
    clients = {each["ptr"]: each for each in known.get("CLIENTS", [])}
    blocked = _blocked(activity)
    found = [(backends.get(each["remote_pid"]), each) for each in known.get("SERVERS", [])]
    found.sort(key=lambda pair: -(pair[0] or {}).get("seconds", 0))
    for backend, server in found:
        if server["database"] == "pgbouncer":
            continue
        who = f"{_owner(server['user'], backend or server)}, pid {server['remote_pid']}"
        client = clients.get(server["link"])
        held = f"for {client['addr']}:{client['port']} " if client else ""
        if backend is None:  # no response from Postgres
            age = _seconds(_age(server["request_time"]))
            yield ("server", who, server["state"], "1", age, held)
            continue
        yield (
            "server",
            who,
            backend["state"],
            "1",
            _seconds(backend["seconds"]),
            held + _doing(backend, blocked),
        )


def _direct(
    known: dict[str, list[Record]], activity: list[Record], pooler_silent: bool
) -> Iterable[Row]:
    """Yield connections that are not PgBouncer's; idle ones are grouped."""
    pooled = {each["remote_pid"] for each in known.get("SERVERS", [])}
    blocked = _blocked(activity)
    where = "Postgres" if pooler_silent else "direct"
    groups: dict[tuple[str, str], list[Record]] = defaultdict(list)
    for each in activity:
        if each["pid"] in pooled:
            continue
        who = _owner(each["usename"], each)
        if each["state"] == "idle":
            groups[who, each["address"]].append(each)
        else:
            who, age = f"{who}, pid {each['pid']}", _seconds(each["seconds"])
            held = f"from {each['address']}:{each['client_port']} {_doing(each, blocked)}"
            yield (where, who, each["state"], "1", age, held)
    for (who, address), idle in sorted(groups.items()):
        age = _seconds(max(each["seconds"] or 0 for each in idle))
        yield (where, who, "idle", str(len(idle)), age, f"from {address}")


def _blocked(activity: list[Record]) -> dict[int, int]:
    """Return how many backends wait for each backend."""
    waiting: dict[int, int] = defaultdict(int)
    for each in activity:
        for pid in each["blockers"]:
            waiting[pid] += 1
    return waiting


def _doing(backend: Record, blocked: dict[int, int]) -> str:
    parts = []
    if count := blocked.get(backend["pid"]):
        parts.append(f"BLOCKS {count}")
    if backend["blockers"]:
        parts.append(f"blocked by pid {', '.join(map(str, backend['blockers']))}")
    elif backend["state"] == "active" and backend["wait_event"]:
        parts.append(f"waits: {backend['wait_event_type']} {backend['wait_event']}")
    return "; ".join([*parts, " ".join(backend["query"].split())])


def _age(moment: str | datetime) -> float:
    """Return the seconds since a time of the console, `2026-11-27 01:02:03 UTC`."""
    at = moment
    if isinstance(at, str):
        at = datetime.strptime(at, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
    return max(0, time.time() - at.timestamp())


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"


def _formatted(rows: Iterable[Row], width: int) -> list[str]:
    """Return lines cut to `width`; on a narrow terminal `what` has a separate line."""
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
