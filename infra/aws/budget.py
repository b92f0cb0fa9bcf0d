"""The connection budget: whether this fleet can exhaust that database, in one table.

`python -m infra.aws.budget [NAME=VALUE …]`; exits with 1 where it could, naming what to change.
Owns the arithmetic. Leaves the numbers to where they are set: the templates' parameters and
`pgbouncer/pgbouncer.ini`. Every count is of the worst moment: a deploy, with both fleets alive and
old and new PgBouncers side by side, and one zone lost.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

from infra.aws import template_file

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
#: What Postgres keeps for superusers, and RDS for its own: `superuser_reserved_connections` and
#: `rds.rds_superuser_reserved_connections`, at their defaults.
SUPERUSERS, RDS = 3, 2
#: The migration and the rotation of a password: a connection each, beside all others.
TASKS = 2
#: `max_user_connections` of PgBouncer's lookup role, in the site.ini of each task.
LOOKUP = 2
#: A version that goes and one that comes: until the last sandbox of the old one is reclaimed.
FLEETS = 2
#: Lambda wants these left to functions without a reservation.
UNRESERVED = 100


def max_connections(gib: float) -> int:
    """What RDS makes of `LEAST({DBInstanceClassMemory/9531392}, 5000)`, at the least.

    DBInstanceClassMemory is what the operating system and RDS leave of the class's memory, and
    nobody publishes how much that is. 300 MiB and a fortieth less stays below every value that was
    published for an instance, by no more than a tenth.
    """
    left = gib * 2**30 * 39 / 40 - 300 * 2**20
    return min(int(left / 9531392), 5000)


@dataclass(frozen=True)
class Budget:
    """Each field is called what it is called where it is set."""

    # Parameters of template.yaml.
    Connection: str
    ReservedConcurrency: int
    PoolSize: int
    MaxOverflow: int
    PoolerTasks: int
    ProxyMaxConnectionsPercent: int
    InstanceClass: str
    # Its metadata: facts that no resource carries.
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
    def clients(self) -> int:
        """Connections that the fleet may hold."""
        each = self.ProcessesPerSandbox * (self.PoolSize + self.MaxOverflow)
        return FLEETS * self.ReservedConcurrency * each

    @property
    def servers_per_task(self) -> int:
        return self.default_pool_size + self.reserve_pool_size + LOOKUP

    @property
    def max_connections(self) -> int:
        return max_connections(MEMORY[self.InstanceClass])


@dataclass(frozen=True)
class Limit:
    """`of` gives what there is and what is used of it. `mend`: what may be changed; the last of
    them is what has to grow with the fleet."""

    what: str
    of: Callable[[Budget], tuple[int, int]]
    mend: tuple[str, ...]
    why: str

    def left(self, budget: Budget) -> int:
        there, used = self.of(budget)
        return there - used


def _lambda(b: Budget) -> tuple[int, int]:
    return b.AccountConcurrency - UNRESERVED, b.ReservedConcurrency


def _clients(b: Budget) -> tuple[int, int]:
    # One task's zone is lost: the load balancer gives its clients to the others.
    return (b.PoolerTasks - 1) * b.max_client_conn, b.clients


def _files(b: Budget) -> tuple[int, int]:
    return b.OpenFiles, b.max_client_conn + b.servers_per_task + 50  # and its own, rounded up


def _database(b: Budget) -> tuple[int, int]:
    there = b.max_connections - SUPERUSERS - RDS
    others = TASKS + b.HumanConnections
    if b.Connection == "rds-proxy":
        return there, b.max_connections * b.ProxyMaxConnectionsPercent // 100 + others
    tasks = b.PoolerTasks * b.MaximumPercent // 100  # at their most, during a rolling deploy
    return there, tasks * b.servers_per_task + others


def limits(budget: Budget) -> list[Limit]:
    fleet = ("ReservedConcurrency", "PoolSize", "MaxOverflow", "ProcessesPerSandbox")
    account = Limit(
        "Lambda concurrency",
        _lambda,
        ("ReservedConcurrency", "AccountConcurrency"),
        f"the account's quota less {UNRESERVED} for other functions; this fleet's reservation",
    )
    if budget.Connection == "rds-proxy":
        mend: tuple[str, ...] = ("ProxyMaxConnectionsPercent", "InstanceClass")
        return [account, Limit("Postgres connections", _database, mend, _why_database(budget))]
    return [
        account,
        Limit(
            "PgBouncer clients",
            _clients,
            (*fleet, "PoolerTasks", "max_client_conn"),
            f"{budget.max_client_conn} × {budget.PoolerTasks - 1}, a task being lost; "
            f"{FLEETS} fleets × {budget.ReservedConcurrency} × {budget.ProcessesPerSandbox} "
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
            _why_database(budget),
        ),
    ]


def _why_database(b: Budget) -> str:
    there = f"{b.InstanceClass}: {b.max_connections} − {SUPERUSERS} superusers − {RDS} RDS"
    rest = f"migration, rotation + {b.HumanConnections} humans"
    if b.Connection == "rds-proxy":
        return f"{there}; {b.ProxyMaxConnectionsPercent} % of {b.max_connections} + {rest}"
    pools = f"({b.default_pool_size} + {b.reserve_pool_size} + {LOOKUP})"
    tasks = f"{b.PoolerTasks} × {b.MaximumPercent} %"
    return f"{there}; {tasks} × {pools} + {rest}"


def from_templates(**overrides: Any) -> Budget:
    """The defaults, `overrides` before them. Raises ValueError for a name or a value unknown."""
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
            raise ValueError(f"{name} is no part of the budget. Parts: {', '.join(names)}")
        values[name] = value
    chosen: dict[str, Any]
    try:
        chosen = {
            name: (int if kind == "int" else str)(values[name]) for name, kind in names.items()
        }
    except ValueError as error:
        raise ValueError(f"a number is needed: {error}") from None
    if chosen["InstanceClass"] not in MEMORY:
        raise ValueError(f"InstanceClass is one of {', '.join(MEMORY)}")
    return Budget(**chosen)


def _candidates(budget: Budget, name: str) -> Iterator[Any]:
    """Other values for `name`, nearest first."""
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


def remedies(budget: Budget, limit: Limit) -> list[str]:
    """Each change that alone would mend `limit` and break nothing that holds."""
    holds = [each for each in limits(budget) if each.left(budget) >= 0]
    found = []
    for name in limit.mend:
        for value in _candidates(budget, name):
            changed = replace(budget, **{name: value})
            if limit.left(changed) >= 0 and all(each.left(changed) >= 0 for each in holds):
                found.append(f"{name}={value}")
                break
    return found


def grown(budget: Budget) -> Budget | None:
    """`budget` with all that has to grow with its fleet; None where nothing is large enough."""
    for limit in limits(budget):
        if limit.left(budget) >= 0:
            continue
        for value in _candidates(budget, limit.mend[-1]):
            changed = replace(budget, **{limit.mend[-1]: value})
            if limit.left(changed) >= 0:
                budget = changed
                break
        else:
            return None
    return budget


def difference(old: Budget, new: Budget) -> str:
    names = [field.name for field in fields(Budget)]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    return ", ".join(f"{name}={getattr(new, name)}" for name in changed)


def table(budget: Budget) -> str:
    """The limits, each with what is used and what is left; under one that is not kept, the ways
    to keep it."""
    lines = [f"{'':22}{'there is':>9}{'used':>8}{'left':>8}"]
    for limit in limits(budget):
        there, used = limit.of(budget)
        lines.append(f"{limit.what:22}{there:9}{used:8}{there - used:8}")
        lines.append(f"  {limit.why}")
        if used > there:
            # Where no change helps by itself, several together do.
            together = grown(budget)
            options = remedies(budget, limit) or [difference(budget, together) if together else ""]
            lines.append(f"  change {' or '.join(filter(None, options)) or 'all of it'}")
    return "\n".join(lines)


def fits(budget: Budget) -> bool:
    return all(limit.left(budget) >= 0 for limit in limits(budget))


def main() -> int:
    try:
        words = [word.partition("=") for word in sys.argv[1:]]
        if not all(equals for _, equals, _ in words):
            raise ValueError("usage: python -m infra.aws.budget [NAME=VALUE …]")
        budget = from_templates(**{name: value for name, _, value in words})
    except ValueError as error:
        print(f"budget: {error}", file=sys.stderr)
        return 2
    print(f"At the worst moment of a deploy, through {budget.Connection}:\n\n{table(budget)}\n")
    huge = replace(budget, ReservedConcurrency=10_000)
    enough = grown(huge)
    print(f"The same with 10,000 sandboxes, which needs {difference(huge, enough or huge)}:\n")
    print(f"{table(enough or huge)}\n")
    print("It fits." if fits(budget) else "It does not fit: this fleet could exhaust a limit.")
    return 0 if fits(budget) else 1


if __name__ == "__main__":
    sys.exit(main())
