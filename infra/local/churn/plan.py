"""The size of a churn run, and whether this machine can run it."""

import os
from dataclasses import dataclass
from enum import StrEnum

import psutil

from infra.local import LabError, network
from infra.local.fleet import Ending

#: The memory of a sandbox, in bytes.
SANDBOX_MEMORY = 70 * 2**20


class ConnectionPath(StrEnum):
    """How sandboxes connect to Postgres."""

    DIRECT = "direct"
    PGBOUNCER = "pgbouncer"


class EndingScenario(StrEnum):
    """How the sandboxes of a row end: an `Ending`, or without the extension."""

    GRACEFUL = "graceful"
    KILL = "kill"
    FREEZE = "freeze"
    VANISH = "vanish"
    #: The handler without its extension, ended as Lambda ends such a sandbox.
    NO_EXTENSION = "no_extension"

    @property
    def ending(self) -> Ending:
        return Ending.VANISH if self is EndingScenario.NO_EXTENSION else Ending(self.value)

    @property
    def needs_filter(self) -> bool:
        return self in (EndingScenario.FREEZE, EndingScenario.VANISH, EndingScenario.NO_EXTENSION)


@dataclass(frozen=True)
class Plan:
    """The size of the fleet, the limit of Postgres, and how often the fleet is replaced."""

    sandboxes: int = 24
    max_connections: int = 20
    deploys: int = 1

    #: Many real cold starts at once would take minutes.
    @property
    def uses_fork_server(self) -> bool:
        return self.sandboxes > 50

    #: How many sandboxes are replaced at the same time.
    @property
    def batch_size(self) -> int:
        return max(1, self.sandboxes // 4)

    @property
    def rows(self) -> list[EndingScenario]:
        return [row for row in EndingScenario if network.is_isolated() or not row.needs_filter]


def from_environment() -> Plan:
    """Read SANDBOXES, MAX_CONNECTIONS and DEPLOYS. Raises LabError for a bad value."""
    sizes = {}
    for name, least, most, default in (
        ("SANDBOXES", 2, 500, 24),
        # PgBouncer's pool of 13, two lookups, three reserved and two for the monitor.
        ("MAX_CONNECTIONS", 20, 1000, 20),
        ("DEPLOYS", 1, 10, 1),
    ):
        given = os.environ.get(name) or str(default)
        if not given.isascii() or not given.isdigit() or not least <= int(given) <= most:
            raise LabError(f"{name} is {given!r}: not a number from {least} to {most}")
        sizes[name.lower()] = int(given)
    plan = Plan(**sizes)
    # Two fleets and a batch: the one being replaced, and sandboxes the previous row left frozen.
    needed = (2 * plan.sandboxes + plan.batch_size) * SANDBOX_MEMORY
    free = psutil.virtual_memory().available
    if needed > free:
        raise LabError(
            f"{plan.sandboxes} sandboxes need about {needed >> 20} MiB and {free >> 20} are free. "
            f"Use fewer: SANDBOXES={max(2, int(free / SANDBOX_MEMORY / 2.5))} make churn"
        )
    return plan
