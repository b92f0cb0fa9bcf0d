"""The connection budget: whether the fleet can exhaust the database, as a table.

`python -m infra.aws.budget [NAME=VALUE …]` exits with status 1 if it can, and says what to change.
The numbers are read from the templates' parameters and `pgbouncer/pgbouncer.ini`. The worst case
counts: during a deployment, with old and new sandboxes and PgBouncers, and one zone lost.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from infra.aws import template_file
from infra.aws.closed_pipe import stop_at_closed_pipe

#: Instance class → memory in GiB. https://aws.amazon.com/rds/instance-types/
MEMORY = {
    "db.t4g.micro": 1,
    "db.t4g.small": 2,
    "db.t4g.medium": 4,
    "db.t4g.large": 8,
    "db.m7g.large": 8,
    "db.m7g.xlarge": 16,
    "db.r7g.xlarge": 32,
    "db.r7g.2xlarge": 64,
}
#: Reserved connections: the defaults of `superuser_reserved_connections` and
#: `rds.rds_superuser_reserved_connections`.
SUPERUSERS, RDS = 3, 2
#: One connection each for a migration and the rotation of a password.
TASKS = 2
#: `max_user_connections` of PgBouncer's lookup role, in each task's site.ini.
LOOKUP = 2
#: During a deployment the old version's sandboxes exist beside the new one's.
FLEETS = 2
#: Lambda keeps these for functions without a reservation: "Configuring reserved concurrency", AWS
#: Lambda Developer Guide. With a new account's quota of 10, no reservation is possible.
UNRESERVED = 100
#: Numbers that may be zero.
OPTIONAL = {"HumanConnections", "reserve_pool_size"}


def max_connections(gib: float) -> int:
    """Return a lower bound of RDS's `LEAST({DBInstanceClassMemory/9531392}, 5000)`.

    DBInstanceClassMemory is the class's memory less that of the operating system and RDS, which is
    not published. Subtracting 300 MiB and a fortieth gives at most the published values of
    instances, and at least nine tenths of them.
    """
    usable = gib * 2**30 * 39 / 40 - 300 * 2**20
    return min(int(usable / 9531392), 5000)


@dataclass(frozen=True)
class Budget:
    """The inputs; each field has the name of the setting."""

    # Parameters of template.yaml.
    Connection: str
    ReservedConcurrency: int
    PoolSize: int
    MaxOverflow: int
    PoolerTasks: int
    ProxyMaxConnectionsPercent: int
    InstanceClass: str
    # Metadata of template.yaml: facts that are in no resource.
    ProcessesPerSandbox: int
    AccountConcurrency: int
    HumanConnections: int
    # pooler.yaml.
    MaximumPercent: int
    OpenFiles: int
    # pgbouncer.ini.
    default_pool_size: int
    reserve_pool_size: int
    max_client_conn: int

    @property
    def sandboxes(self) -> int:
        """The maximum number of sandboxes: the reservation or, without one, the quota."""
        return self.ReservedConcurrency or self.AccountConcurrency

    @property
    def clients(self) -> int:
        """The maximum number of connections of the fleet."""
        each = self.ProcessesPerSandbox * (self.PoolSize + self.MaxOverflow)
        return FLEETS * self.sandboxes * each

    @property
    def servers_per_task(self) -> int:
        return self.default_pool_size + self.reserve_pool_size + LOOKUP

    @property
    def max_connections(self) -> int:
        return max_connections(MEMORY[self.InstanceClass])


@dataclass(frozen=True)
class Limit:
    """A limit with its capacity and use. `adjustable` are the inputs that can be changed; the last
    one has to grow with the fleet."""

    title: str
    capacity_and_use: Callable[[Budget], tuple[int, int]]
    adjustable: tuple[str, ...]
    reason: str

    def headroom(self, budget: Budget) -> int:
        there, used = self.capacity_and_use(budget)
        return there - used


def _lambda(b: Budget) -> tuple[int, int]:
    if b.ReservedConcurrency == 0:
        return b.AccountConcurrency, b.sandboxes
    return b.AccountConcurrency - UNRESERVED, b.ReservedConcurrency


def _lambda_reason(b: Budget) -> str:
    if b.ReservedConcurrency == 0:
        return "no reservation: this fleet may take the account's whole quota"
    return f"the account's quota less {UNRESERVED} for other functions; this fleet's reservation"


def _clients(b: Budget) -> tuple[int, int]:
    # With one zone lost, the load balancer sends its clients to the other tasks.
    return (b.PoolerTasks - 1) * b.max_client_conn, b.clients


def _files(b: Budget) -> tuple[int, int]:
    return b.OpenFiles, b.max_client_conn + b.servers_per_task + 50  # its own files, rounded up


def _database(b: Budget) -> tuple[int, int]:
    there = b.max_connections - SUPERUSERS - RDS
    others = TASKS + b.HumanConnections
    if b.Connection == "rds-proxy":
        return there, b.max_connections * b.ProxyMaxConnectionsPercent // 100 + others
    tasks = b.PoolerTasks * b.MaximumPercent // 100  # during a rolling deployment
    return there, tasks * b.servers_per_task + others


def limits(budget: Budget) -> list[Limit]:
    fleet = ("ReservedConcurrency", "PoolSize", "MaxOverflow", "ProcessesPerSandbox")
    account = Limit(
        "Lambda concurrency",
        _lambda,
        ("ReservedConcurrency", "AccountConcurrency"),
        _lambda_reason(budget),
    )
    if budget.Connection == "rds-proxy":
        adjustable: tuple[str, ...] = ("ProxyMaxConnectionsPercent", "InstanceClass")
        return [
            account,
            Limit("Postgres connections", _database, adjustable, _database_reason(budget)),
        ]
    return [
        account,
        Limit(
            "PgBouncer clients",
            _clients,
            (*fleet, "PoolerTasks", "max_client_conn"),
            f"{budget.max_client_conn} × {budget.PoolerTasks - 1}, a task being lost; "
            f"{FLEETS} fleets × {budget.sandboxes} × {budget.ProcessesPerSandbox} "
            f"× ({budget.PoolSize} + {budget.MaxOverflow})",
        ),
        Limit(
            "PgBouncer open files",
            _files,
            ("max_client_conn", "OpenFiles"),
            "the task's ulimit; one a client, one a server connection, and its own",
        ),
        Limit(
            "Postgres connections",
            _database,
            ("PoolerTasks", "default_pool_size", "reserve_pool_size", "InstanceClass"),
            _database_reason(budget),
        ),
    ]


def _database_reason(b: Budget) -> str:
    there = f"{b.InstanceClass}: {b.max_connections} − {SUPERUSERS} superusers − {RDS} RDS"
    rest = f"migration, rotation + {b.HumanConnections} humans"
    if b.Connection == "rds-proxy":
        return f"{there}; {b.ProxyMaxConnectionsPercent} % of {b.max_connections} + {rest}"
    pools = f"({b.default_pool_size} + {b.reserve_pool_size} + {LOOKUP})"
    tasks = f"{b.PoolerTasks} × {b.MaximumPercent} %"
    return f"{there}; {tasks} × {pools} + {rest}"


def from_templates(**overrides: Any) -> Budget:
    """Return the templates' values, with `overrides`. Raises ValueError for an invalid override."""
    root = template_file.read("template")
    pooler = template_file.read("pooler")["Resources"]
    ini = (template_file.FOLDER.parents[1] / "pgbouncer/pgbouncer.ini").read_text()
    container = pooler["Task"]["Properties"]["ContainerDefinitions"][0]
    values: dict[str, Any] = {
        **{name: each.get("Default") for name, each in root["Parameters"].items()},
        **root["Metadata"]["Budget"],
        **pooler["Service"]["Properties"]["DeploymentConfiguration"],
        "OpenFiles": container["Ulimits"][0]["SoftLimit"],
        **dict(re.findall(r"^(\w+) *= *(\d+)$", ini, re.M)),
    }
    names = {field.name: field.type for field in fields(Budget)}
    for name, value in overrides.items():
        if name not in names:
            raise ValueError(f"{name} is not part of the budget. Parts: {', '.join(names)}")
        values[name] = value
    chosen: dict[str, Any]
    try:
        chosen = {
            name: (int if kind == "int" else str)(values[name]) for name, kind in names.items()
        }
    except ValueError as error:
        raise ValueError(f"not a number: {error}") from None
    for name, value in chosen.items():
        _check(name, value, root["Parameters"].get(name, {}))
    if chosen["InstanceClass"] not in MEMORY:
        raise ValueError(f"InstanceClass must be one of {', '.join(MEMORY)}")
    return Budget(**chosen)


def _check(name: str, value: Any, declared: dict[str, Any]) -> None:
    """Raise ValueError for a value that the template rejects or a number that is too small."""
    if isinstance(value, int):
        lowest = declared.get("MinValue", 0 if name in OPTIONAL else 1)
        if not lowest <= value <= declared.get("MaxValue", value):
            most = f" to {declared['MaxValue']}" if "MaxValue" in declared else " or more"
            raise ValueError(f"{name}={value} is not allowed: {lowest}{most}")
    elif value not in declared.get("AllowedValues", [value]):
        raise ValueError(f"{name} is one of {', '.join(declared['AllowedValues'])}")


def _candidates(budget: Budget, name: str) -> Iterator[Any]:
    """Yield other values for `name`, nearest first."""
    now = getattr(budget, name)
    if name == "InstanceClass":
        yield from sorted(MEMORY, key=MEMORY.__getitem__)
    elif name in ("max_client_conn", "AccountConcurrency", "OpenFiles", "PoolerTasks"):
        yield from range(now, now + 200)
        yield from range(now // 100 * 100 + 200, 100_000, 100)
    if name == "PoolerTasks":
        yield from range(now - 1, 1, -1)
    elif name not in ("InstanceClass", "AccountConcurrency", "OpenFiles"):
        yield from range(now - 1, -1 if name == "MaxOverflow" else 0, -1)


def suggestions(budget: Budget, limit: Limit) -> list[str]:
    """Return each single change that keeps `limit` and all limits that are kept now."""
    holds = [each for each in limits(budget) if each.headroom(budget) >= 0]
    found = []
    for name in limit.adjustable:
        for value in _candidates(budget, name):
            changed = replace(budget, **{name: value})
            if limit.headroom(changed) >= 0 and all(each.headroom(changed) >= 0 for each in holds):
                found.append(f"{name}={value}")
                break
    return found


def grow_to_fit(budget: Budget) -> Budget | None:
    """Return `budget` with everything grown to its fleet; None if no value is large enough."""
    for limit in limits(budget):
        if limit.headroom(budget) >= 0:
            continue
        for value in _candidates(budget, limit.adjustable[-1]):
            changed = replace(budget, **{limit.adjustable[-1]: value})
            if limit.headroom(changed) >= 0:
                budget = changed
                break
        else:
            return None
    return budget


def changed_values(old: Budget, new: Budget) -> str:
    names = [field.name for field in fields(Budget)]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    return ", ".join(f"{name}={getattr(new, name)}" for name in changed)


def table(budget: Budget) -> str:
    """Format the limits with their use and, for an exceeded limit, the changes that keep it."""
    lines = [f"{'':22}{'there is':>9}{'used':>8}{'left':>8}"]
    for limit in limits(budget):
        there, used = limit.capacity_and_use(budget)
        lines.append(f"{limit.title:22}{there:9}{used:8}{there - used:8}")
        lines.append(f"  {limit.reason}")
        if used > there:
            # If no single change is enough, suggest several together.
            together = grow_to_fit(budget)
            combined = changed_values(budget, together) if together else ""
            options = suggestions(budget, limit) or [combined]
            lines.append(f"  change {' or '.join(filter(None, options)) or 'all of it'}")
    return "\n".join(lines)


def if_pinned(b: Budget) -> str:
    """Describe the case that RDS Proxy pins clients of the extended protocol (not verified)."""
    shared = b.max_connections * b.ProxyMaxConnectionsPercent // 100
    fitting = shared // (FLEETS * b.ProcessesPerSandbox * (b.PoolSize + b.MaxOverflow))
    return (
        f"Multiplexed, {b.clients} clients share {shared} server connections. If each is pinned to "
        f"one (unproven, see\ndocs/aws-reference.md), {min(b.clients, shared)} have one and "
        f"{max(0, b.clients - shared)} time out; ReservedConcurrency={fitting}"
        " then\nkeeps a deployment within them."
    )


def fits(budget: Budget) -> bool:
    return all(limit.headroom(budget) >= 0 for limit in limits(budget))


def main() -> int:
    return stop_at_closed_pipe(lambda: report(sys.argv[1:]))


def report(words: Sequence[str]) -> int:
    """Print the budget with the values of `words`; return 1 if it does not fit, 2 for bad words."""
    try:
        pairs = [word.partition("=") for word in words]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("usage: python -m infra.aws.budget [NAME=VALUE …]")
        budget = from_templates(**{name: value for name, _, value in pairs})
    except ValueError as error:
        print(f"budget: {error}", file=sys.stderr)
        return 2
    print(f"Worst case during a deployment, through {budget.Connection}:\n\n{table(budget)}\n")
    huge = replace(budget, ReservedConcurrency=10_000)
    enough = grow_to_fit(huge)
    print(f"The same with 10,000 sandboxes, which needs {changed_values(huge, enough or huge)}:\n")
    print(f"{table(enough or huge)}\n")
    if budget.Connection == "rds-proxy":
        print(f"{if_pinned(budget)}\n")
    print("It fits." if fits(budget) else "It does not fit: this fleet could exhaust a limit.")
    return 0 if fits(budget) else 1


if __name__ == "__main__":
    sys.exit(main())
