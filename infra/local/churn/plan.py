"""What is asked of the laboratory, and whether this machine can do it."""

import os
from dataclasses import dataclass
from enum import StrEnum

import psutil

from infra.local import LabError, network
from infra.local.fleet import Ending

#: What one sandbox takes, in bytes.
SANDBOX_MEMORY = 70 * 2**20


class Path(StrEnum):
    """From a sandbox to Postgres."""

    DIRECT = "direct"
    PGBOUNCER = "pgbouncer"


class Row(StrEnum):
    """How a row's sandboxes end: as in `Ending`, or with nobody having called `dispose()`."""

    GRACEFUL = "graceful"
    KILL = "kill"
    FREEZE = "freeze"
    VANISH = "vanish"
    #: The same handler without its extension, taken away as Lambda takes one away.
    FORGOT = "forgot"

    @property
    def ending(self) -> Ending:
        return Ending.VANISH if self is Row.FORGOT else Ending(self.value)

    @property
    def needs_filter(self) -> bool:
        return self in (Row.FREEZE, Row.VANISH, Row.FORGOT)


@dataclass(frozen=True)
class Plan:
    """`sandboxes`: the fleet's size. `max_connections`: Postgres' limit. `deploys`: how often the
    whole fleet is replaced."""

    sandboxes: int = 24
    max_connections: int = 20
    deploys: int = 1

    #: Whether sandboxes are forked from one that has imported everything: so many real cold starts
    #: at once would take this machine minutes.
    @property
    def forked(self) -> bool:
        return self.sandboxes > 50

    #: Sandboxes replaced at a time: old and new live side by side for so long.
    @property
    def batch(self) -> int:
        return max(1, self.sandboxes // 4)

    @property
    def rows(self) -> list[Row]:
        return [row for row in Row if network.is_own() or not row.needs_filter]


def from_environment() -> Plan:
    """SANDBOXES, MAX_CONNECTIONS and DEPLOYS. Raises LabError with a bad one's fault."""
    sizes = {}
    for name, least, most, default in (
        ("SANDBOXES", 2, 500, 24),
        # PgBouncer's pool of 13, two lookups, three for superusers and two to look on.
        ("MAX_CONNECTIONS", 20, 1000, 20),
        ("DEPLOYS", 1, 10, 1),
    ):
        given = os.environ.get(name) or str(default)
        if not given.isascii() or not given.isdigit() or not least <= int(given) <= most:
            raise LabError(f"{name} is {given!r}: not a number from {least} to {most}")
        sizes[name.lower()] = int(given)
    plan = Plan(**sizes)
    # Two batches more: one being replaced, and what the row before left frozen.
    needed = (2 * plan.sandboxes + plan.batch) * SANDBOX_MEMORY
    free = psutil.virtual_memory().available
    if needed > free:
        raise LabError(
            f"{plan.sandboxes} sandboxes need about {needed >> 20} MiB and {free >> 20} are free. "
            f"Ask for fewer: SANDBOXES={max(2, int(free / SANDBOX_MEMORY / 2.5))} make churn"
        )
    return plan
