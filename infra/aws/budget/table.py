"""Prints the connection budget as a table."""

from __future__ import annotations

from infra.aws.budget.inputs import FLEETS, Budget
from infra.aws.budget.limits import limits, proxy_connections
from infra.aws.budget.suggestions import changed_values, grow_to_fit, suggestions


def table(budget: Budget) -> str:
    """Format the limits with their use and, for an exceeded limit, changes that suffice."""
    lines = [f"{'':22}{'capacity':>9}{'used':>8}{'left':>8}"]
    for limit in limits(budget):
        capacity, use = limit.capacity_and_use(budget)
        lines.append(f"{limit.title:22}{capacity:9}{use:8}{capacity - use:8}")
        lines.append(f"  {limit.explanation}")
        if use > capacity:
            # If no single change is enough, suggest several together.
            grown = grow_to_fit(budget)
            together = changed_values(budget, grown) if grown else ""
            options = suggestions(budget, limit) or [together]
            change = " or ".join(filter(None, options))
            lines.append(f"  change {change}" if change else "  no single change is enough")
    return "\n".join(lines)


def if_pinned(budget: Budget) -> str:
    """Describe what happens if RDS Proxy pins each client, which is unknown."""
    shared = proxy_connections(budget)
    per_sandbox = budget.ProcessesPerSandbox * (budget.PoolSize + budget.MaxOverflow)
    fitting = shared // (FLEETS * per_sandbox)
    return (
        f"With multiplexing, {budget.clients} clients share {shared} server connections. If every "
        "client is pinned to its own\n(unknown, see docs/aws-reference.md), "
        f"{min(budget.clients, shared)} clients get one and {max(0, budget.clients - shared)} time "
        f"out. With ReservedConcurrency={fitting},\na deployment needs no more than {shared}."
    )
