"""The scenarios, each with its fault, its setup and its expectations."""

import math
import re
import signal
from dataclasses import dataclass, field, fields

from tests.faults.injectors import (
    TO_PGBOUNCER,
    TO_POSTGRES,
    FaultInjector,
    disk,
    network,
    passwords,
    pgbouncer,
    postgres,
    sandboxes,
)


@dataclass(frozen=True)
class Expected:
    """What callers see; rates are of the requests in progress during the fault."""

    success_rate: float = 0.0
    #: No request that begins and ends during the fault succeeds.
    full_outage: bool = False
    #: Some requests fail before the fault ends.
    prompt_failures: bool = False
    #: Some requests reach the deadline.
    status_504: bool = False
    #: The handler retries no request.
    no_retry: bool = False
    #: Seconds from the end of the fault to the first success, and why it may be more than one.
    recovers_within: float = 1.0
    reason: str = ""


ALL_SUCCEED = Expected(1)
MOST_SUCCEED = Expected(0.9)
OUTAGE = Expected(full_outage=True)
LOGIN_RETRY_REASON = "PgBouncer asks Postgres again once a second (`server_login_retry`)"
LOGIN_RETRY = Expected(recovers_within=3, reason=LOGIN_RETRY_REASON)
OUTAGE_THEN_LOGIN_RETRY = Expected(full_outage=True, recovers_within=3, reason=LOGIN_RETRY_REASON)


@dataclass(frozen=True)
class Setup:
    """What a scenario needs. `a | b` combines the setups of two scenarios."""

    #: The servers that are addressed by name.
    named: frozenset[str] = frozenset()
    pgbouncer_settings: dict[str, str | int] = field(default_factory=dict)
    sandbox_environment: dict[str, str] = field(default_factory=dict)
    two_pgbouncers: bool = False
    secret_store: bool = False
    small_disk: bool = False

    def __or__(self, other: "Setup") -> "Setup":
        names = [setting.name for setting in fields(self)]
        return Setup(*(getattr(self, name) | getattr(other, name) for name in names))


NAMED_POSTGRES = Setup(named=frozenset({TO_POSTGRES}))


@dataclass(frozen=True)
class Scenario:
    """A fault, with times in seconds."""

    title: str
    inject: FaultInjector
    expected: Expected = ALL_SUCCEED
    #: The server whose network the fault breaks, by a TCP proxy in front of it.
    target: str = ""
    setup: Setup = Setup()
    #: Limits for the duration of the fault.
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    #: The function's timeout, which is also the longest time that a caller may wait.
    deadline: float = 8.0

    @property
    def combinable(self) -> bool:
        """Whether other scenarios keep their promises with this scenario's setup."""
        setup = self.setup
        return not (setup.sandbox_environment or setup.two_pgbouncers or setup.small_disk)

    @property
    def id(self) -> str:
        return "_".join(re.findall(r"\w+", self.title.partition(" (")[0]))


#: PgBouncer 1.18 crashes ("bad client state: 0", pgbouncer#801, fixed since) when a client
#: disconnects before its cancel request was forwarded; so end the fault before the handler cancels.
MAX_SECONDS_BEFORE_CANCEL = 5
SCENARIOS = [
    Scenario("PgBouncer killed, and started again", pgbouncer.pgbouncer_killed, OUTAGE),
    Scenario(
        "one of two PgBouncers killed, behind a load balancer that does not notice",
        pgbouncer.one_of_two_killed,
        MOST_SUCCEED,
        TO_PGBOUNCER,
        Setup(two_pgbouncers=True),
    ),
    Scenario("PgBouncer restarted every second", pgbouncer.pgbouncer_restarted, Expected(0.5)),
    Scenario("PgBouncer paused (`PAUSE`)", pgbouncer.pgbouncer_paused, OUTAGE),
    Scenario("PgBouncer reloaded ten times a second", pgbouncer.pgbouncer_reloaded),
    Scenario(
        "PgBouncer full (`max_client_conn`)",
        pgbouncer.pgbouncer_full,
        OUTAGE,
        TO_PGBOUNCER,
        Setup(pgbouncer_settings={"max_client_conn": 12}),
    ),
    Scenario(
        "PgBouncer's client slots taken by unfinished logins (`client_login_timeout`)",
        pgbouncer.unfinished_logins,
        Expected(
            recovers_within=5,
            reason="PgBouncer closes a login that does not end after 3 s (`client_login_timeout`)",
        ),
        TO_PGBOUNCER,
        Setup(pgbouncer_settings={"max_client_conn": 30}),
        max_seconds=1,  # the clients stay until PgBouncer closes them
    ),
    Scenario(
        "session state left on every server connection (`SET`, PREPARE, LISTEN, locks)",
        pgbouncer.session_state_left,
    ),
    Scenario(
        "PgBouncer's pool held by others (`query_wait_timeout` 1)",
        pgbouncer.pool_exhausted,
        Expected(full_outage=True, no_retry=True),
        setup=Setup(
            pgbouncer_settings={
                "default_pool_size": 3,
                "reserve_pool_size": 0,
                "query_wait_timeout": 1,
            }
        ),
    ),
    Scenario(
        "PgBouncer's certificate issued by another CA", pgbouncer.certificate_of_another_ca, OUTAGE
    ),
    Scenario(
        "a client silent in a transaction while it holds locks (`idle_transaction_timeout`)",
        sandboxes.client_silent_with_locks,
        Expected(),
        max_seconds=2,  # then PgBouncer ends it
    ),
    Scenario(
        "Postgres shut down in fast mode",
        postgres.postgres_restarted(signal.SIGINT),
        OUTAGE_THEN_LOGIN_RETRY,
    ),
    Scenario(
        "Postgres shut down in immediate mode, then recovered",
        postgres.postgres_restarted(signal.SIGQUIT),
        OUTAGE_THEN_LOGIN_RETRY,
    ),
    Scenario(
        "Postgres out of connections", postgres.postgres_out_of_slots, OUTAGE_THEN_LOGIN_RETRY
    ),
    Scenario("backends terminated in mid-query", postgres.backends_terminated, MOST_SUCCEED),
    Scenario("network to PgBouncer 300 ms slower", network.delayed, target=TO_PGBOUNCER),
    Scenario(
        "network to PgBouncer stalled",
        network.stalled,
        OUTAGE,
        TO_PGBOUNCER,
        max_seconds=MAX_SECONDS_BEFORE_CANCEL,
    ),
    Scenario("network to PgBouncer cut", network.cut, OUTAGE, TO_PGBOUNCER),
    Scenario(
        "network to PgBouncer accepts all data but returns no response (timeout 3 s)",
        network.black_holed,
        Expected(full_outage=True, status_504=True),
        TO_PGBOUNCER,
        min_seconds=4,
        deadline=3,
    ),
    Scenario(
        "requests to PgBouncer lost", network.data_lost("requests"), Expected(0.8), TO_PGBOUNCER
    ),
    Scenario(
        "responses from PgBouncer lost", network.data_lost("responses"), Expected(0.8), TO_PGBOUNCER
    ),
    Scenario("network to Postgres 300 ms slower", network.delayed, target=TO_POSTGRES),
    Scenario(
        "network to Postgres stalled",
        network.stalled,
        OUTAGE,
        TO_POSTGRES,
        max_seconds=MAX_SECONDS_BEFORE_CANCEL,
    ),
    Scenario("network to Postgres cut", network.cut, OUTAGE_THEN_LOGIN_RETRY, TO_POSTGRES),
    Scenario("requests to Postgres lost", network.data_lost("requests"), LOGIN_RETRY, TO_POSTGRES),
    Scenario(
        "responses from Postgres lost", network.data_lost("responses"), LOGIN_RETRY, TO_POSTGRES
    ),
    Scenario(
        "the password rotated again and again, sandboxes replaced (`DB_AUTH=secret`)",
        passwords.password_rotated,
        setup=Setup(secret_store=True),
    ),
    Scenario(
        "a sandbox frozen in mid-query",
        sandboxes.frozen_in_mid_query,
        MOST_SUCCEED,
        max_seconds=4,  # its own request has a deadline too
    ),
]
#: These need a network or mount namespace.
ISOLATED_SCENARIOS = [
    Scenario("a tenth of the packets to PgBouncer lost", network.packets_lost(10), MOST_SUCCEED),
    Scenario(
        "every packet to PgBouncer lost (`DB_CONNECT_TIMEOUT` 1, `tcp_user_timeout` 2)",
        network.packets_lost(100),
        # TCP_USER_TIMEOUT ends the connection after a second, and one connection attempt fails.
        # Without it TCP would retransmit after 3 s, then 6 s. Requests whose query arrived wait
        # until the deadline.
        Expected(
            full_outage=True,
            prompt_failures=True,
            recovers_within=2,
            reason="a sandbox waits `DB_CONNECT_TIMEOUT`, 1 s, for a connection",
        ),
        setup=Setup(
            # Nothing tells PgBouncer of the abandoned connections, so it has to probe them.
            pgbouncer_settings={"tcp_keepidle": 1, "tcp_keepintvl": 1, "tcp_user_timeout": 2000},
            sandbox_environment={"DB_CONNECT_TIMEOUT": "1"},
        ),
        min_seconds=4,
    ),
    Scenario(
        "Postgres failed over to another address",
        network.failed_over,
        OUTAGE_THEN_LOGIN_RETRY,
        TO_POSTGRES,
        NAMED_POSTGRES,
    ),
    Scenario(
        "PgBouncer's name server silent",
        network.name_server_silent,
        target=TO_POSTGRES,
        setup=NAMED_POSTGRES,
    ),
    Scenario(
        "PgBouncer's name server silent, and connections to Postgres cut",
        network.name_server_silent_and_connections_reset,
        Expected(
            recovers_within=11,
            reason=(
                "PgBouncer's resolver (c-ares) retries a lost query after 5 s, then after 10 s"
            ),
        ),
        TO_POSTGRES,
        NAMED_POSTGRES,
        min_seconds=3,  # PgBouncer caches an address for a second (`dns_max_ttl`)
    ),
    Scenario(
        "the sandboxes' name server silent, and connections to PgBouncer cut",
        network.name_server_silent_and_connections_reset,
        Expected(
            full_outage=True,
            recovers_within=4,
            reason="a sandbox waits up to `DB_CONNECT_TIMEOUT` (3 s) for an address",
        ),
        TO_PGBOUNCER,
        Setup(
            named=frozenset({TO_PGBOUNCER}),
            sandbox_environment={"DB_SSLMODE": "verify-ca"},  # the certificate is for another name
        ),
    ),
    Scenario("Postgres' disk full", disk.disk_full, Expected(0.4), setup=Setup(small_disk=True)),
    Scenario(
        "Postgres' disk full, with no space for WAL either",
        disk.disk_full_of_log,
        LOGIN_RETRY,
        setup=Setup(small_disk=True),
    ),
]
