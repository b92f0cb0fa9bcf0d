"""The rows of `make status`: what PgBouncer and Postgres know of clients, servers and locks.

`pooler` has the records of PgBouncer's SHOW commands and is empty if PgBouncer does not respond.
`activity` has a record of `pg_stat_activity` for each backend.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

Record = dict[str, Any]
#: The records of a server by the names of tables.
Response = dict[str, list[Record]]
#: Where, who, state, count, age in seconds, and what.
Row = tuple[str, str, str, str, str, str]


def limit_rows(pooler: Response) -> Iterable[Row]:
    if pooler:
        counts = {record["list"]: record["items"] for record in pooler["LISTS"]}
        settings = {record["key"]: record["value"] for record in pooler["CONFIG"]}
        what = f"clients; {counts['login_clients']} of them have not logged in"
        clients = counts["used_clients"] - 1  # without this command's own connection
        limit = int(settings["max_client_conn"])
        yield ("PgBouncer", "all", fill_level(clients, limit), "", "", what)


def stopped_rows(pooler: Response) -> Iterable[Row]:
    """Yield databases whose clients wait (`PAUSE`, `KILL`) or are refused (`DISABLE`)."""
    for database in pooler.get("DATABASES", []):
        for column, remedy in (("paused", "RESUME"), ("disabled", "ENABLE")):
            if database[column]:
                name = database["name"]
                yield ("PgBouncer", name, column.upper(), "", "", f"{remedy} {name}")


def pool_rows(pooler: Response) -> Iterable[Row]:
    databases = {database["name"]: database for database in pooler.get("DATABASES", [])}
    for pool in _without_console(pooler.get("POOLS", [])):
        servers = ", ".join(
            f"{pool[f'sv_{state}']} {state}" for state in ("active", "idle", "used", "login")
        )
        database = databases[pool["database"]]
        reserve = database.get("reserve_pool_size", database.get("reserve_pool"))
        yield (
            "pool",
            f"{pool['user']} on {pool['database']}",
            f"{pool['cl_waiting']} waiting",
            str(pool["cl_active"] + pool["cl_waiting"]),
            _seconds(pool["maxwait"] + pool["maxwait_us"] / 1e6),
            f"servers: {servers}, of {database['pool_size']} and {reserve} in reserve",
        )


def client_rows(pooler: Response) -> Iterable[Row]:
    """Yield PgBouncer's clients by owner, state and address, largest group first."""
    groups: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for client in _without_console(pooler.get("CLIENTS", [])):
        state, age = client["state"], _age(client["request_time"])
        if state == "waiting":
            age = client["wait"] + client["wait_us"] / 1e6
        elif state == "active" and not client["link"]:
            state = "idle"  # PgBouncer calls every logged-in client active
        groups[_owner(client["user"], client), state, client["addr"]].append(age)
    for (owner, state, address), ages in sorted(groups.items(), key=lambda group: -len(group[1])):
        yield ("client", owner, state, str(len(ages)), _seconds(max(ages)), f"from {address}")


def server_rows(pooler: Response, activity: list[Record]) -> Iterable[Row]:
    """Yield PgBouncer's server connections with the backend's work and the client, oldest first."""
    backends = {backend["pid"]: backend for backend in activity}
    clients = {client["ptr"]: client for client in pooler.get("CLIENTS", [])}
    blocked = _count_blocked(activity)
    pairs = [
        (server, backends.get(server["remote_pid"]))
        for server in _without_console(pooler.get("SERVERS", []))
    ]
    pairs.sort(key=lambda pair: -(pair[1] or {}).get("seconds", 0))
    for server, backend in pairs:
        owner = f"{_owner(server['user'], backend or server)}, pid {server['remote_pid']}"
        client = clients.get(server["link"])
        what = f"for {client['addr']}:{client['port']} " if client else ""
        if backend is None:  # Postgres does not respond
            state, age = server["state"], _age(server["request_time"])
        else:
            state, age = backend["state"], backend["seconds"]
            what += _work(backend, blocked)
        yield ("server", owner, state, "1", _seconds(age), what)


def direct_rows(where: str, pooler: Response, activity: list[Record]) -> Iterable[Row]:
    """Yield connections that are not PgBouncer's; idle ones are grouped."""
    pooled = {server["remote_pid"] for server in pooler.get("SERVERS", [])}
    blocked = _count_blocked(activity)
    groups: dict[tuple[str, str], list[float]] = defaultdict(list)
    for backend in activity:
        if backend["pid"] in pooled:
            continue
        owner, address = _owner(backend["usename"], backend), backend["address"]
        if backend["state"] == "idle":
            groups[owner, address].append(backend["seconds"] or 0)
        else:
            owner, age = f"{owner}, pid {backend['pid']}", _seconds(backend["seconds"])
            what = f"from {address}:{backend['client_port']} {_work(backend, blocked)}"
            yield (where, owner, backend["state"], "1", age, what)
    for (owner, address), ages in sorted(groups.items()):
        yield (where, owner, "idle", str(len(ages)), _seconds(max(ages)), f"from {address}")


def role_rows(roles: list[Record]) -> Iterable[Row]:
    for role in roles:
        level = fill_level(role["held"], role["rolconnlimit"])
        yield ("role", role["rolname"], level, "", "", "connections; the role's CONNECTION LIMIT")


def fill_level(count: int, limit: int, reserved: int = 0) -> str:
    full = "FULL, " if count >= limit - reserved else ""
    return f"{full}{count} of {limit}"


def _without_console(records: list[Record]) -> Iterable[Record]:
    return (record for record in records if record["database"] != "pgbouncer")


def _owner(user: str, connection: Record) -> str:
    return f"{user}, {connection.get('application_name') or 'unnamed'}"


def _count_blocked(activity: list[Record]) -> Counter[int]:
    """Return how many backends each backend blocks, by its pid."""
    return Counter(pid for backend in activity for pid in backend["blockers"])


def _work(backend: Record, blocked: Counter[int]) -> str:
    """Return the locks and the query of a backend."""
    parts = []
    if count := blocked[backend["pid"]]:
        parts.append(f"BLOCKS {count}")
    if backend["blockers"]:
        parts.append(f"blocked by pid {', '.join(map(str, backend['blockers']))}")
    elif backend["state"] == "active" and backend["wait_event"]:
        parts.append(f"waits: {backend['wait_event_type']} {backend['wait_event']}")
    return "; ".join([*parts, " ".join(backend["query"].split())])


def _age(moment: str | datetime) -> float:
    """Return the seconds since a time of the console, such as `2026-11-27 01:02:03 UTC`."""
    if isinstance(moment, str):
        moment = datetime.strptime(moment, "%Y-%m-%d %H:%M:%S %Z").replace(tzinfo=UTC)
    return max(0, time.time() - moment.timestamp())


def _seconds(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds:.1f}"
