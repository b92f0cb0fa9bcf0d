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
    """One thing that is broken, what callers see of it, and what it needs. Times in seconds."""

    what: str
    fault: Fault
    #: The share that must succeed of the requests under way meanwhile.
    answered: float = 0.0
    #: Of those that begin and end within it: none succeeds; some hear of it.
    total: bool = False
    told: bool = False
    #: Some get as far as the deadline.
    late: bool = False
    #: The handler tries none a second time.
    once: bool = False
    #: From the end of the fault to the first success, and why that may be more than a second.
    well: float = 1.0
    why: str = ""
    #: How long it lasts, in the short form and in the long one.
    at_least: float = 0.0
    at_most: float = math.inf
    #: Before whom a relay is needed.
    relay: str = ""
    #: PgBouncer's, the sandboxes', and their time-out.
    settings: dict[str, str | int] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    deadline: float = 8.0
    #: Which of the two is found by a name.
    name: str = ""
    #: Whether there are two PgBouncers, and the relay is a load balancer before them.
    balanced: bool = False
    #: Whether the password is in a vault, and Postgres on a small disk.
    vault: bool = False
    disk: bool = False

    @property
    def mixes(self) -> bool:
        """Whether what it needs leaves other cells what they promise."""
        return not (self.environment or self.balanced or self.disk)

    @property
    def id(self) -> str:
        return "_".join(re.findall(r"\w+", self.what.partition(" (")[0]))


RETRY = "PgBouncer asks Postgres again once a second (`server_login_retry`)"
#: Before the handler cancels what it asked: PgBouncer 1.18 ends itself ("bad client state: 0",
#: pgbouncer#801, mended since) where a client asks for a cancel and is gone before that is sent.
NO_CANCEL = 5
CELLS = [
    Cell("PgBouncer killed, and started again", pgbouncer.pgbouncer_killed, total=True),
    Cell(
        "one of two PgBouncers killed, behind a load balancer that does not notice",
        pgbouncer.one_of_two_killed,
        0.9,
        relay=TO_PGBOUNCER,
        balanced=True,
    ),
    Cell("PgBouncer restarted every second", pgbouncer.pgbouncer_restarted, 0.5),
    Cell("PgBouncer paused (`PAUSE`)", pgbouncer.pgbouncer_paused, total=True),
    Cell("PgBouncer reloaded ten times a second", pgbouncer.pgbouncer_reloaded, 1),
    Cell(
        "PgBouncer full (`max_client_conn`)",
        pgbouncer.pgbouncer_full,
        total=True,
        relay=TO_PGBOUNCER,
        settings={"max_client_conn": 12},
    ),
    Cell(
        "PgBouncer's pool held by others (`query_wait_timeout` 1)",
        pgbouncer.pool_exhausted,
        total=True,
        once=True,
        settings={"default_pool_size": 3, "reserve_pool_size": 0, "query_wait_timeout": 1},
    ),
    Cell(
        "PgBouncer's certificate is of another CA", pgbouncer.certificate_of_another_ca, total=True
    ),
    Cell(
        "a client silent in a transaction, with locks (`idle_transaction_timeout`)",
        sandboxes.client_silent_with_locks,
        at_most=2,  # then it is waited for until it ends by itself
    ),
    Cell(
        "Postgres shut down fast",
        postgres.postgres_restarted(signal.SIGINT),
        total=True,
        well=3,
        why=RETRY,
    ),
    Cell(
        "Postgres shut down at once, and recovered",
        postgres.postgres_restarted(signal.SIGQUIT),
        total=True,
        well=3,
        why=RETRY,
    ),
    Cell("Postgres out of slots", postgres.postgres_out_of_slots, total=True, well=3, why=RETRY),
    Cell("backends terminated in mid-query", postgres.backends_terminated, 0.9),
    Cell("network to PgBouncer 300 ms slower", network.delayed, 1, relay=TO_PGBOUNCER),
    Cell(
        "network to PgBouncer stalled",
        network.stalled,
        total=True,
        relay=TO_PGBOUNCER,
        at_most=NO_CANCEL,
    ),
    Cell("network to PgBouncer cut", network.cut, total=True, relay=TO_PGBOUNCER),
    Cell(
        "network to PgBouncer taking everything, and no answer (time-out 3 s)",
        network.unanswered,
        total=True,
        late=True,
        at_least=4,
        relay=TO_PGBOUNCER,
        deadline=3,
    ),
    Cell("questions to PgBouncer lost", network.lost("questions"), 0.8, relay=TO_PGBOUNCER),
    Cell("answers of PgBouncer lost", network.lost("answers"), 0.8, relay=TO_PGBOUNCER),
    Cell("network to Postgres 300 ms slower", network.delayed, 1, relay=TO_POSTGRES),
    Cell(
        "network to Postgres stalled",
        network.stalled,
        total=True,
        relay=TO_POSTGRES,
        at_most=NO_CANCEL,
    ),
    Cell("network to Postgres cut", network.cut, total=True, well=3, why=RETRY, relay=TO_POSTGRES),
    Cell(
        "questions to Postgres lost",
        network.lost("questions"),
        well=3,
        why=RETRY,
        relay=TO_POSTGRES,
    ),
    Cell("answers of Postgres lost", network.lost("answers"), well=3, why=RETRY, relay=TO_POSTGRES),
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
PACKETS = [
    Cell("a tenth of the packets to PgBouncer lost", network.packets_lost(10), 0.9),
    Cell(
        "every packet to PgBouncer lost (`DB_CONNECT_TIMEOUT` 1, `tcp_user_timeout` 2)",
        network.packets_lost(100),
        total=True,
        # By TCP_USER_TIMEOUT after a second, and another for a connection in vain. Without it TCP
        # would send the question once more 3 s after it, then 6. The rest waits for the deadline:
        # those whose question arrived, and whose answer did not.
        told=True,
        well=2,
        why="a sandbox waits `DB_CONNECT_TIMEOUT`, 1 s, for a connection",
        at_least=4,
        environment={"DB_CONNECT_TIMEOUT": "1"},
        # Nobody tells PgBouncer of the connections that were given up: it has to ask.
        settings={"tcp_keepidle": 1, "tcp_keepintvl": 1, "tcp_user_timeout": 2000},
    ),
]
NAMES = [
    Cell(
        "Postgres failed over to another address",
        network.failed_over,
        total=True,
        well=3,
        why=RETRY,
        relay=TO_POSTGRES,
        name=TO_POSTGRES,
    ),
    Cell(
        "PgBouncer's name server silent",
        network.names_gone,
        1,
        relay=TO_POSTGRES,
        name=TO_POSTGRES,
    ),
    Cell(
        "PgBouncer's name server silent, and connections to Postgres cut",
        network.names_and_connections_gone,
        at_least=3,  # PgBouncer remembers an address for a second (`dns_max_ttl`)
        well=11,
        why="PgBouncer's resolver asks again 5 s after a question that was lost, then 10 (c-ares)",
        relay=TO_POSTGRES,
        name=TO_POSTGRES,
    ),
    Cell(
        "the sandboxes' name server silent, and connections to PgBouncer cut",
        network.names_and_connections_gone,
        total=True,
        well=4,
        why="a sandbox waits `DB_CONNECT_TIMEOUT`, 3 s, for a name",
        relay=TO_PGBOUNCER,
        name=TO_PGBOUNCER,
        environment={"DB_SSLMODE": "verify-ca"},  # the certificate is of another name
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
