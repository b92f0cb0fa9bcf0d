"""Runs a scenario under traffic and measures its effect."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from operator import or_
from pathlib import Path

from infra.local.fleet.fork_server import ForkServer
from infra.local.server import account
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.faults.injectors import BACKENDS, TO_PGBOUNCER, TO_POSTGRES, SystemUnderTest
from tests.faults.injectors.disk import small_disk
from tests.faults.name_server import SERVER_NAME, NameServer, using_resolv_conf
from tests.faults.report import Measurement
from tests.faults.scenarios import Scenario
from tests.faults.secret_store import SecretStore
from tests.faults.traffic import CALLERS, Traffic

#: Time for abandoned connections to disappear, in seconds. It is below the servers' own time limits
#: for abandoned queries and transactions.
GRACE_S = 1.0


@contextlib.contextmanager
def prepared_system(
    scenarios: Sequence[Scenario], stack: Stack, folder: Path
) -> Iterator[SystemUnderTest]:
    """Set up the servers, proxies and settings that the scenarios need together."""
    setup = reduce(or_, (scenario.setup for scenario in scenarios))
    proxied_servers = {scenario.target for scenario in scenarios}
    pgbouncer_settings, proxies = dict(setup.pgbouncer_settings), {}
    with contextlib.ExitStack() as undo:
        disk = undo.enter_context(small_disk(stack)) if setup.small_disk else None
        name_server = undo.enter_context(NameServer()) if setup.named else None
        if name_server:
            content = f"nameserver {name_server.host}\n"
            resolv_conf = account().write(stack.folder / "resolv.conf", content)
            if TO_POSTGRES in setup.named:
                pgbouncer_settings["resolv_conf"] = str(resolv_conf)
            if TO_PGBOUNCER in setup.named:
                undo.enter_context(using_resolv_conf(resolv_conf))
        if TO_POSTGRES in proxied_servers:
            proxy = TcpProxy(stack.postgres.host, stack.postgres.port)
            proxies[TO_POSTGRES] = undo.enter_context(proxy)
        bouncers = [
            undo.enter_context(
                stack.another_pgbouncer(
                    settings=pgbouncer_settings,
                    postgres_host=SERVER_NAME if TO_POSTGRES in setup.named else None,
                    postgres_port=proxies[TO_POSTGRES].port
                    if TO_POSTGRES in proxied_servers
                    else None,
                )
            )
            for _ in range(2 if setup.two_pgbouncers else 1)
        ]
        environment = stack.environment(bouncers[0]) | setup.sandbox_environment
        if TO_PGBOUNCER in setup.named:
            environment["DB_HOST"] = SERVER_NAME
        if TO_PGBOUNCER in proxied_servers:
            first, *others = [(bouncer.host, bouncer.port) for bouncer in bouncers]
            proxies[TO_PGBOUNCER] = undo.enter_context(TcpProxy(*first, *others))
            environment["DB_PORT"] = str(proxies[TO_PGBOUNCER].port)
        if setup.two_pgbouncers:
            certificates = "".join(bouncer.ca.read_text() for bouncer in bouncers if bouncer.ca)
            bundle = account().write(stack.folder / "both.pem", certificates)
            environment["DB_SSLROOTCERT"] = str(bundle)
        system = SystemUnderTest(stack, bouncers, environment, proxies, undo=undo)
        if setup.secret_store:
            store = SecretStore(folder.name, stack.service.app, environment.pop("DB_PASS"))
            system.secret_store = undo.enter_context(store)
            environment |= store.environment
        if name_server:
            system.name_server = name_server
        if disk:
            system.disk = disk
        yield system


@contextlib.asynccontextmanager
async def running_traffic(
    system: SystemUnderTest, folder: Path, deadline: float
) -> AsyncIterator[Traffic]:
    """Start a fleet whose function timeout is `deadline`, and yield the traffic through it."""
    service = system.stack.service
    async with (
        ForkServer(root=service.root, python=service.python) as fork_server,
        service.fleet(
            system.environment,
            concurrency=2 * CALLERS,  # some faults replace sandboxes
            timeout=deadline,
            logs=folder,
            fork_server=fork_server,
        ) as system.fleet,
    ):
        yield Traffic(system.fleet, folder, service)


async def measure(scenario: Scenario, stack: Stack, folder: Path, seconds: float) -> Measurement:
    """Measure a scenario in its own system, with a fault of about `seconds`."""
    with prepared_system([scenario], stack, folder) as system:
        async with running_traffic(system, folder, scenario.deadline) as traffic:
            measurement = await run_scenario(scenario, system, traffic, seconds)
        leaked_at_end = await count_leaked_connections(system)
        return replace(
            measurement,
            # A connection that leaked during the traffic may still be open, so the two overlap.
            leaked_connections=max(measurement.leaked_connections, leaked_at_end),
            retried_by_handler=traffic.retried_by_handler(),
        )


async def run_scenario(
    scenario: Scenario, system: SystemUnderTest, traffic: Traffic, seconds: float
) -> Measurement:
    """Send traffic before, during and after the fault, then count the effects of the fault."""
    system.faulted_proxy = scenario.target
    async with traffic:
        await traffic.wait_for_success()
        before_fault = time.monotonic()
        async with scenario.inject(system):
            fault_began = time.monotonic()
            await asyncio.sleep(max(scenario.min_seconds, min(seconds, scenario.max_seconds)))
            fault_ending = time.monotonic()
        fault_ended = time.monotonic()
        await traffic.wait_for_success()
    overlapping = [
        request
        for request in traffic.requests
        if request.finished_at > before_fault and request.started_at < fault_ended
    ]
    during_fault = [
        request
        for request in overlapping
        if request.started_at > fault_began and request.finished_at < fault_ending
    ]
    recovered_at = min(
        request.finished_at for request in traffic.requests if request.succeeded_after(fault_ending)
    )
    max_latency_ms = max(request.ms for request in traffic.requests)
    retried_by_client = await traffic.retry_missing_writes()
    await traffic.warm_every_sandbox()
    leaked_connections = await count_leaked_connections(system)
    async with system.admin() as admin:
        lost_writes, duplicated_writes = await traffic.count_lost_and_duplicated(admin)
    return Measurement(
        title=scenario.title,
        requests=len(overlapping),
        succeeded=sum(request.succeeded for request in overlapping),
        during_fault=len(during_fault),
        succeeded_during_fault=sum(request.succeeded for request in during_fault),
        status_504=sum(request.status == 504 for request in overlapping),
        max_latency_s=round(max_latency_ms / 1000, 3),
        time_to_recovery_s=round(max(0, recovered_at - fault_ended), 3),
        reason=scenario.expected.reason,
        writes=len(traffic.writes),
        retried_by_client=retried_by_client,
        leaked_connections=leaked_connections,
        lost_writes=lost_writes,
        duplicated_writes=duplicated_writes,
    )


async def count_leaked_connections(system: SystemUnderTest) -> int:
    """Count the connections that are still leaked after a grace period, while no request runs."""
    app = system.stack.service.app
    sandboxes, pgbouncer_port = system.fleet.sandboxes, int(system.environment["DB_PORT"])
    end = time.monotonic() + GRACE_S
    async with system.admin() as admin:
        while True:
            is_last_count = time.monotonic() > end
            sockets = [
                sum(remote_port == pgbouncer_port for _, remote_port in sandbox.connections())
                for sandbox in sandboxes
            ]
            clients, servers = (
                [
                    row
                    for bouncer in system.bouncers
                    for row in bouncer.show(view)
                    if row["user"] == app
                ]
                for view in ("CLIENTS", "SERVERS")
            )
            leaks = number_of_leaks(
                sockets,
                clients=len(clients),
                servers=len(servers),
                # A `new` one has no client: PgBouncer waits for the server's name or a login.
                servers_in_use=sum(row["state"] not in ("idle", "new") for row in servers),
                backends=await admin.fetchval(BACKENDS, app),
            )
            if is_last_count or not leaks:
                return leaks
            await asyncio.sleep(0.05)


def number_of_leaks(
    sockets: Sequence[int], *, clients: int, servers: int, servers_in_use: int, backends: int
) -> int:
    """Return the number of leaks; `sockets` are the connections to PgBouncer of each sandbox.

    A leak is a sandbox without exactly one connection, a client beyond one per sandbox, a server
    connection in use, or a backend that PgBouncer does not know. One leaked connection is often
    several of these, so the largest count is returned and not the sum.
    """
    return max(
        sum(abs(count - 1) for count in sockets),
        clients - len(sockets),
        servers_in_use,
        backends - servers,
    )


def assert_expectations(
    scenario: Scenario, measurement: Measurement, *, check_rates: bool = True
) -> None:
    """Raise AssertionError if the measurement breaks a promise of the scenario.

    Without `check_rates`, ignore how many requests failed, and how.
    """
    expected = scenario.expected
    assert measurement.lost_writes == 0, measurement
    assert measurement.duplicated_writes == 0, measurement
    assert measurement.leaked_connections == 0, measurement
    assert not expected.full_outage or not measurement.succeeded_during_fault, measurement
    assert measurement.time_to_recovery_s <= expected.recovers_within, measurement
    assert measurement.requests >= (CALLERS if check_rates else 1), measurement
    assert measurement.max_latency_s <= scenario.deadline, measurement
    if check_rates:
        assert measurement.succeeded >= expected.success_rate * measurement.requests, measurement
        assert measurement.status_504 or not expected.status_504, measurement
        assert measurement.during_fault or not expected.prompt_failures, measurement
        assert not expected.no_retry or not measurement.retried_by_handler, measurement
