"""Checks how connections are closed, how many there are and whether they are shared."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from infra.aws.verify import observed
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding, decide, unknown

#: PgBouncer's log messages for a client that closed its connection and for one that vanished.
CLEAN_CLOSE, VANISHED = "client close request", "client unexpected eof"
#: How many clients may vanish: Lambda may also stop a sandbox without SIGTERM.
MAX_VANISHED_SHARE = 0.1


def closed_at_shutdown(deployment: Deployment) -> Finding:
    """Count clean closes. Without the extension Lambda kills the process: an EOF."""
    if deployment.uses_proxy:
        return unknown("RDS Proxy does not log how a client disconnected")
    since, group = deployment.started - timedelta(days=1), deployment.named("Pooler/Log")

    def count(text: str) -> int:
        messages = observed.messages(deployment, group, since, f'"{text}"', "pgbouncer/")
        # PgBouncer logs `database/user@address`. Others look up passwords or use the console.
        return sum("/appuser@" in message for message in messages)

    closed, vanished = count(CLEAN_CLOSE), count(VANISHED)
    if not closed + vanished:
        return unknown("no client disconnected within a day: Lambda decides when to stop a sandbox")
    return decide(
        vanished <= MAX_VANISHED_SHARE * (closed + vanished),
        f"{closed} × {CLEAN_CLOSE}, {vanished} × {VANISHED}",
    )


def _of_database(deployment: Deployment) -> list[Any]:
    return [{"Name": "DBInstanceIdentifier", "Value": deployment.database}]


def within_budget(deployment: Deployment) -> Finding:
    """Compare the database's connections within a day with the budget."""
    dimensions = _of_database(deployment)
    values = observed.values(deployment, "AWS/RDS", "DatabaseConnections", dimensions)
    budgeted = int(deployment.stack.parameters["BudgetedConnections"])
    if not values:
        return unknown(f"no data for {deployment.database} within a day")
    return decide(
        max(values) <= budgeted, f"at most {max(values):g} within a day, of {budgeted} budgeted"
    )


def shares_connections(deployment: Deployment) -> Finding:
    """Check that RDS Proxy pinned no connection to a client within a day."""
    name = "DatabaseConnectionsCurrentlySessionPinned"
    dimensions = [{"Name": "ProxyName", "Value": deployment.named("Proxy/Proxy")}]
    values = observed.values(deployment, "AWS/RDS", name, dimensions)
    if not values:
        return unknown("no data from RDS Proxy within a day")
    return decide(max(values) == 0, f"at most {max(values):g} pinned within a day")


CLOSED = Check(
    "closed at shutdown", "A sandbox that ends closes its connection", closed_at_shutdown
)
BUDGET = Check("within budget", "The database has no more connections than budgeted", within_budget)
PINNED = Check("nothing pinned", "RDS Proxy ties no connection to one client", shares_connections)
