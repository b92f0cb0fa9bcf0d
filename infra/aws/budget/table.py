"""Prints the connection budget as a table."""

from __future__ import annotations

from infra.aws.budget.inputs import FLEETS, Budget
from infra.aws.budget.limits import limits, proxy_connections
from infra.aws.budget.suggestions import changed_values, grow_to_fit, suggestions


def table(budget: Budget) -> str:
    """Format the limits with their use and, for an exceeded limit, the changes that keep it."""
    lines = [f"{'':22}{'there is':>9}{'used':>8}{'left':>8}"]
    for limit in limits(budget):
        capacity, use = limit.capacity_and_use(budget)
        lines.append(f"{limit.title:22}{capacity:9}{use:8}{capacity - use:8}")
        lines.append(f"  {limit.explanation}")
        if use > capacity:
            # If no single change is enough, suggest several together.
            grown = grow_to_fit(budget)
            together = changed_values(budget, grown) if grown else ""
            options = suggestions(budget, limit) or [together]
            lines.append(f"  change {' or '.join(filter(None, options)) or 'all of it'}")
    return "\n".join(lines)


def if_pinned(budget: Budget) -> str:
    """Describe the case that RDS Proxy pins clients of the extended protocol (not verified)."""
    shared = proxy_connections(budget)
    per_sandbox = budget.ProcessesPerSandbox * (budget.PoolSize + budget.MaxOverflow)
    fitting = shared // (FLEETS * per_sandbox)
    return (
        f"Multiplexed, {budget.clients} clients share {shared} server connections. If each is "
        "pinned to one (unproven, see\n"
        f"docs/aws-reference.md), {min(budget.clients, shared)} have one and "
        f"{max(0, budget.clients - shared)} time out; ReservedConcurrency={fitting}"
        " then\nkeeps a deployment within them."
    )
