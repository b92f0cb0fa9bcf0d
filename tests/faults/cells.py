"""The matrix: what is broken in each cell, what it needs for that, and what it promises."""

import math
import re
import signal
from dataclasses import dataclass, field

from tests.faults.breakages import (
    TO_PGBOUNCER,
    TO_POSTGRES,
    Fault,
    disk,
    network,
    passwords,
    pgbouncer,
    postgres,
    sandboxes,
)


@dataclass(frozen=True)
class Cell:
    """`answered`: the share that must succeed of the requests under way meanwhile. `well`: seconds
    from the end of the fault to the first success; `why` they are more than one. `at_most`: seconds
    after which it ends in the long form too.

    What it needs: `relay`, before whom; `settings` of PgBouncer; a `name` for Postgres, a `vault`
    for the password, a small `disk` for Postgres."""

    what: str
    fault: Fault
    answered: float = 0.0
    well: float = 1.0
    why: str = ""
    at_most: float = math.inf
    relay: str = ""
    settings: dict[str, str | int] = field(default_factory=dict)
    name: bool = False
    vault: bool = False
    disk: bool = False

    @property
    def id(self) -> str:
        return "_".join(re.findall(r"\w+", self.what.partition(" (")[0]))


RETRY = "PgBouncer asks Postgres again once a second (`server_login_retry`)"
#: Before the handler cancels what it asked: PgBouncer 1.18 ends itself ("bad client state: 0",
#: pgbouncer#801, mended since) where a client asks for a cancel and is gone before that is sent.
NO_CANCEL = 5
CELLS = [
    Cell("PgBouncer killed, and started again", pgbouncer.pgbouncer_killed),
    Cell("PgBouncer restarted every second", pgbouncer.pgbouncer_restarted, 0.5),
    Cell("PgBouncer paused (`PAUSE`)", pgbouncer.pgbouncer_paused),
    Cell("PgBouncer reloaded ten times a second", pgbouncer.pgbouncer_reloaded, 1),
    Cell(
        "PgBouncer full (`max_client_conn`)",
        pgbouncer.pgbouncer_full,
        relay=TO_PGBOUNCER,
        settings={"max_client_conn": 12},
    ),
    Cell(
        "PgBouncer's pool held by others (`query_wait_timeout` 1)",
        pgbouncer.pool_exhausted,
        settings={"default_pool_size": 3, "reserve_pool_size": 0, "query_wait_timeout": 1},
    ),
    Cell("PgBouncer's certificate is of another CA", pgbouncer.certificate_of_another_ca),
    Cell(
        "a client silent in a transaction, with locks (`idle_transaction_timeout`)",
        sandboxes.client_silent_with_locks,
        at_most=2,  # then it is waited for until it ends by itself
    ),
    Cell(
        "Postgres shut down fast",
        postgres.postgres_restarted(signal.SIGINT),
        well=3,
        why=RETRY,
    ),
    Cell(
        "Postgres shut down at once, and recovered",
        postgres.postgres_restarted(signal.SIGQUIT),
        well=3,
        why=RETRY,
    ),
    Cell("Postgres out of slots", postgres.postgres_out_of_slots, well=3, why=RETRY),
    Cell("backends terminated in mid-query", postgres.backends_terminated, 0.9),
    Cell("network to PgBouncer 300 ms slower", network.delayed, 1, relay=TO_PGBOUNCER),
    Cell("network to PgBouncer stalled", network.stalled, relay=TO_PGBOUNCER, at_most=NO_CANCEL),
    Cell("network to PgBouncer cut", network.cut, relay=TO_PGBOUNCER),
    Cell("answers of PgBouncer lost", network.answers_lost, 0.8, relay=TO_PGBOUNCER),
    Cell("network to Postgres 300 ms slower", network.delayed, 1, relay=TO_POSTGRES),
    Cell("network to Postgres stalled", network.stalled, relay=TO_POSTGRES, at_most=NO_CANCEL),
    Cell("network to Postgres cut", network.cut, well=3, why=RETRY, relay=TO_POSTGRES),
    Cell("answers of Postgres lost", network.answers_lost, well=3, why=RETRY, relay=TO_POSTGRES),
    Cell(
        "the password rotated again and again, sandboxes replaced (`DB_AUTH=secret`)",
        passwords.password_rotated,
        1,
        vault=True,
    ),
    Cell(
        "a sandbox frozen in mid-query",
        sandboxes.frozen_in_mid_query,
        0.9,
        at_most=4,  # its own request has a deadline, too
    ),
]
# The others need a network and mounts of their own.
PACKETS = [Cell("a tenth of the packets to PgBouncer lost", network.packets_lost, 0.9)]
NAMES = [
    Cell(
        "Postgres failed over to another address",
        network.failed_over,
        well=3,
        why=RETRY,
        relay=TO_POSTGRES,
        name=True,
    ),
    Cell("name server silent", network.names_gone, 1, relay=TO_POSTGRES, name=True),
    Cell(
        "name server silent, and connections to Postgres cut",
        network.names_and_connections_gone,
        well=11,
        why="PgBouncer's resolver asks again 5 s after a question that was lost, then 10 (c-ares)",
        relay=TO_POSTGRES,
        name=True,
    ),
]
DISKS = [
    Cell("Postgres' disk full", disk.disk_full, 0.4, disk=True),
    Cell(
        "Postgres' disk full, and its log (WAL) with it",
        disk.disk_full_of_log,
        disk=True,
        well=3,
        why=RETRY,
    ),
]
APART = [*PACKETS, *NAMES, *DISKS]
