"""The limits that a fleet can exhaust, with their capacity and their use in the worst case.

The worst case is a deployment, with old and new sandboxes and PgBouncers, and one PgBouncer lost.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.aws.budget.inputs import FLEETS, LOOKUP_CONNECTIONS, Budget

#: Reserved connections: the defaults of `superuser_reserved_connections` and
#: `rds.rds_superuser_reserved_connections`.
SUPERUSERS, RDS = 3, 2
#: One connection for a migration and one for the rotation of a password.
MAINTENANCE_CONNECTIONS = 2
#: Lambda keeps these for functions without a reservation: "Configuring reserved concurrency", AWS
#: Lambda Developer Guide. With a new account's quota of 10, no reservation is possible.
UNRESERVED = 100
#: Files that PgBouncer opens besides its connections, rounded up.
OWN_FILES = 50


@dataclass(frozen=True)
class Limit:
    """A limit, and the inputs that can be changed to stay within it.

    The last one of `adjustable` is what has to grow with the fleet.
    """

    title: str
    capacity_and_use: Callable[[Budget], tuple[int, int]]
    adjustable: tuple[str, ...]
    explanation: str

    def headroom(self, budget: Budget) -> int:
        capacity, use = self.capacity_and_use(budget)
        return capacity - use


def limits(budget: Budget) -> list[Limit]:
    """Return all limits; that of the database is the last one."""
    if budget.Connection == "rds-proxy":
        return [_lambda(budget), _database(budget, "ProxyMaxConnectionsPercent", "InstanceClass")]
    pooler = ("PoolerTasks", "default_pool_size", "reserve_pool_size", "InstanceClass")
    return [_lambda(budget), _clients(budget), _files(), _database(budget, *pooler)]


def fits(budget: Budget) -> bool:
    return all(limit.headroom(budget) >= 0 for limit in limits(budget))


def _lambda(budget: Budget) -> Limit:
    if budget.ReservedConcurrency == 0:
        explanation = "no reservation: this fleet may take the account's whole quota"
    else:
        explanation = (
            f"the account's quota less {UNRESERVED} for other functions; this fleet's reservation"
        )
    return Limit(
        "Lambda concurrency",
        _lambda_capacity_and_use,
        ("ReservedConcurrency", "AccountConcurrency"),
        explanation,
    )


def _lambda_capacity_and_use(budget: Budget) -> tuple[int, int]:
    if budget.ReservedConcurrency == 0:
        return budget.AccountConcurrency, budget.sandboxes
    return budget.AccountConcurrency - UNRESERVED, budget.ReservedConcurrency


def _clients(budget: Budget) -> Limit:
    return Limit(
        "PgBouncer clients",
        # If one task is lost, the load balancer sends that task's clients to the others.
        lambda b: ((b.PoolerTasks - 1) * b.max_client_conn, b.clients),
        (
            "ReservedConcurrency",
            "PoolSize",
            "MaxOverflow",
            "ProcessesPerSandbox",
            "PoolerTasks",
            "max_client_conn",
        ),
        f"{budget.max_client_conn} × {budget.PoolerTasks - 1}, with one task lost; "
        f"{FLEETS} fleets × {budget.sandboxes} × {budget.ProcessesPerSandbox} "
        f"× ({budget.PoolSize} + {budget.MaxOverflow})",
    )


def _files() -> Limit:
    return Limit(
        "PgBouncer open files",
        lambda b: (b.OpenFiles, b.max_client_conn + b.server_connections_per_task + OWN_FILES),
        ("max_client_conn", "OpenFiles"),
        "the task's ulimit; one per client, one per server connection, and PgBouncer's own",
    )


def _database(budget: Budget, *adjustable: str) -> Limit:
    return Limit(
        "Postgres connections",
        _database_capacity_and_use,
        adjustable,
        _database_explanation(budget),
    )


def _database_capacity_and_use(budget: Budget) -> tuple[int, int]:
    capacity = budget.max_connections - SUPERUSERS - RDS
    others = MAINTENANCE_CONNECTIONS + budget.HumanConnections
    if budget.Connection == "rds-proxy":
        return capacity, proxy_connections(budget) + others
    # During a rolling deployment.
    poolers = budget.PoolerTasks * budget.MaximumPercent // 100
    return capacity, poolers * budget.server_connections_per_task + others


def proxy_connections(budget: Budget) -> int:
    """Return how many connections RDS Proxy may open to Postgres."""
    return budget.max_connections * budget.ProxyMaxConnectionsPercent // 100


def _database_explanation(budget: Budget) -> str:
    capacity = (
        f"{budget.InstanceClass}: {budget.max_connections} − {SUPERUSERS} superusers − {RDS} RDS"
    )
    others = f"migration, rotation + {budget.HumanConnections} humans"
    if budget.Connection == "rds-proxy":
        share = f"{budget.ProxyMaxConnectionsPercent} % of {budget.max_connections}"
        return f"{capacity}; {share} + {others}"
    pool = f"({budget.default_pool_size} + {budget.reserve_pool_size} + {LOOKUP_CONNECTIONS})"
    return f"{capacity}; {budget.PoolerTasks} × {budget.MaximumPercent} % × {pool} + {others}"
