"""Suggests changes with which a fleet fits its limits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace
from typing import Any

from infra.aws.budget.inputs import MEMORY, Budget
from infra.aws.budget.limits import Limit, limits

#: Inputs that may grow to satisfy a limit.
GROWING = {"max_client_conn", "AccountConcurrency", "OpenFiles", "PoolerTasks"}
#: Inputs for which no smaller value is suggested.
NOT_SHRINKING = {"InstanceClass", "AccountConcurrency", "OpenFiles"}


def _candidates(budget: Budget, name: str) -> Iterator[Any]:
    """Yield other values of the input `name`: larger ones first, each kind nearest first."""
    current = getattr(budget, name)
    if name == "InstanceClass":
        yield from sorted(MEMORY, key=MEMORY.__getitem__)
    elif name in GROWING:
        yield from range(current, current + 200)
        yield from range(current // 100 * 100 + 200, 100_000, 100)
    if name == "PoolerTasks":
        yield from range(current - 1, 1, -1)
    elif name not in NOT_SHRINKING:
        yield from range(current - 1, -1 if name == "MaxOverflow" else 0, -1)


def suggestions(budget: Budget, limit: Limit) -> list[str]:
    """Return every single change that satisfies `limit` and does not exceed another limit."""
    kept = [other for other in limits(budget) if other.headroom(budget) >= 0]
    changes = []
    for name in limit.adjustable:
        for value in _candidates(budget, name):
            changed = replace(budget, **{name: value})
            if all(other.headroom(changed) >= 0 for other in (limit, *kept)):
                changes.append(f"{name}={value}")
                break
    return changes


def grow_to_fit(budget: Budget) -> Budget | None:
    """Return `budget` with everything grown to its fleet; None if no value is large enough."""
    for limit in limits(budget):
        if limit.headroom(budget) >= 0:
            continue
        name = limit.adjustable[-1]
        for value in _candidates(budget, name):
            changed = replace(budget, **{name: value})
            if limit.headroom(changed) >= 0:
                budget = changed
                break
        else:
            return None
    return budget


def changed_values(old: Budget, new: Budget) -> str:
    """Return the inputs of `new` that differ from `old`, as `NAME=VALUE, …`."""
    names = [field.name for field in fields(Budget)]
    changed = [name for name in names if getattr(old, name) != getattr(new, name)]
    return ", ".join(f"{name}={getattr(new, name)}" for name in changed)
