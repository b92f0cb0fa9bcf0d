"""What a churn run consists of: paths, endings, size; and how long connections may stay open."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

import psutil

from infra.local import LabError, network
from infra.local.fleet import Ending

#: The memory of a sandbox, in bytes.
SANDBOX_MEMORY = 70 * 2**20
#: The delay until the monitor notices that a connection was closed, in seconds.
TOLERANCE_S = 1.0
#: How long Linux takes by default to close a connection to a silent peer.
KERNEL_KEEPALIVE_S = 7200 + 9 * 75


class ConnectionPath(StrEnum):
    """How sandboxes connect to Postgres."""

    DIRECT = "direct"
    PGBOUNCER = "pgbouncer"


class EndingScenario(StrEnum):
    """How the sandboxes of a row end: in one of the ways of `Ending`, or without an extension."""

    GRACEFUL = "graceful"
    KILL = "kill"
    FREEZE = "freeze"
    VANISH = "vanish"
    #: As Lambda ends a sandbox whose handler has not registered an extension.
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

    @property
    def uses_fork_server(self) -> bool:
        """Many real cold starts at the same time would take minutes."""
        return self.sandboxes > 50

    @property
    def batch_size(self) -> int:
        """The number of sandboxes that are replaced at the same time."""
        return max(1, self.sandboxes // 4)

    @property
    def endings(self) -> list[EndingScenario]:
        """The endings that are possible here."""
        return [
            ending for ending in EndingScenario if network.is_isolated() or not ending.needs_filter
        ]


def release_limit_s(
    path: ConnectionPath, ending: EndingScenario, pgbouncer: Mapping[str, str]
) -> float:
    """Return how long connections of ended sandboxes may stay open. `pgbouncer`: its settings."""
    if ending in (EndingScenario.GRACEFUL, EndingScenario.KILL):
        return TOLERANCE_S
    if path is ConnectionPath.DIRECT:
        return KERNEL_KEEPALIVE_S + TOLERANCE_S
    idle, interval, count, timeout = (
        float(pgbouncer[key])
        for key in ("tcp_keepidle", "tcp_keepintvl", "tcp_keepcnt", "client_idle_timeout")
    )
    return min(timeout, idle + interval * count) + TOLERANCE_S


def from_environment() -> Plan:
    """Read SANDBOXES, MAX_CONNECTIONS and DEPLOYS. Raises LabError for a bad value."""
    sizes = {}
    for name, minimum, maximum, default in (
        ("SANDBOXES", 2, 500, 24),
        # PgBouncer's pool of 13, two lookups, three reserved and two for the monitor.
        ("MAX_CONNECTIONS", 20, 1000, 20),
        ("DEPLOYS", 1, 10, 1),
    ):
        value = os.environ.get(name) or str(default)
        if not value.isascii() or not value.isdigit() or not minimum <= int(value) <= maximum:
            raise LabError(f"{name} is {value!r}: not a number from {minimum} to {maximum}")
        sizes[name.lower()] = int(value)
    plan = Plan(**sizes)
    # The fleet, the frozen sandboxes of the previous row, and a batch of replacements.
    needed = (2 * plan.sandboxes + plan.batch_size) * SANDBOX_MEMORY
    free = psutil.virtual_memory().available
    if needed > free:
        raise LabError(
            f"{plan.sandboxes} sandboxes need about {needed >> 20} MiB, but only {free >> 20} MiB"
            f" are free. Use fewer: SANDBOXES={max(2, int(free / SANDBOX_MEMORY / 2.5))} make churn"
        )
    return plan
