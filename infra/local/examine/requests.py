"""Warm requests: what they send to the database, and what they leave on the connection."""

import asyncio
import json
from dataclasses import dataclass, field
from statistics import median

from infra.database.roles import APP
from infra.local.examine import responses
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import IN_TRANSACTION, Lab, once_per_lab, wait_until_frozen
from infra.local.examine.statements import Statement
from infra.local.fleet import InvocationResult
from infra.local.tcp_proxy import TcpProxy

#: Some drivers prepare a statement when a connection executes it for the sixth time.
WARM_UP_ROUNDS, MEASURED_ROUNDS = 7, 3


@dataclass
class WarmRequest:
    """A request for one event: median counts, and the statements of the last request."""

    round_trips: float = 0
    connections: float = 0
    statements: list[Statement] = field(default_factory=list)
    #: The number of requests that left a transaction open.
    open_transactions: int = 0

    @property
    def work(self) -> int:
        return sum(statement.is_work for statement in self.statements)

    @property
    def transactions(self) -> int:
        return sum(statement.begins_transaction for statement in self.statements)

    @property
    def allowed_round_trips(self) -> int:
        return self.work + 2 * self.transactions


@once_per_lab
async def measure(lab: Lab) -> tuple[list[WarmRequest], list[Statement]]:
    """Return a request for each event, and all statements since the start of the process.

    The connection is direct, because PgBouncer would add its own statements.
    """
    by_event: list[WarmRequest] = []
    indexes = range(len(lab.inputs.events))
    postgres = lab.stack.postgres
    lab.statements.mark()
    with TcpProxy(postgres.host, postgres.port) as proxy:
        async with lab.fleet(lab.direct(proxy.port)) as fleet, lab.admin() as admin:
            for _ in range(WARM_UP_ROUNDS):
                for index in indexes:
                    result = await fleet.invoke(lab.event(index))
                    if responses.has_failed(result):
                        raise UnknownError(f"an event fails: {responses.describe(result)}")
            all_statements = lab.statements.since_mark()
            for index in indexes:
                round_trips, connections, request = [], [], WarmRequest()
                for _ in range(MEASURED_ROUNDS):
                    await wait_until_frozen(fleet)
                    lab.statements.mark()
                    proxy.reset_counters()
                    await fleet.invoke(lab.event(index))
                    await wait_until_frozen(fleet)
                    round_trips.append(proxy.round_trips)
                    connections.append(proxy.connections)
                    request.statements = lab.statements.since_mark()
                    all_statements += request.statements
                    request.open_transactions += await admin.fetchval(IN_TRANSACTION, APP)
                request.round_trips = median(round_trips)
                request.connections = median(connections)
                by_event.append(request)
    return by_event, all_statements


async def round_trips(lab: Lab) -> Finding:
    """At most one round trip for each of the function's own statements, and two for each
    transaction."""
    requests, _ = await measure(lab)
    worst = max(
        requests,
        key=lambda request: request.round_trips - request.allowed_round_trips + request.connections,
    )
    has_property = all(
        request.round_trips <= request.allowed_round_trips and not request.connections
        for request in requests
    )
    connections = f", {worst.connections:g} new connections" if worst.connections else ""
    return conclude(
        has_property,
        f"{worst.round_trips:g} round trips for {worst.work} statements of its own"
        f" and {worst.transactions} transactions{connections}",
        round_trips=worst.round_trips,
        statements=worst.work,
        transactions=worst.transactions,
        connections=worst.connections,
    )


async def transactions(lab: Lab) -> Finding:
    requests, _ = await measure(lab)
    begun = sum(request.transactions for request in requests)
    open_after = sum(request.open_transactions for request in requests)
    return conclude(
        not open_after,
        f"{begun} begun in {len(requests)} requests; {open_after} of"
        f" {len(requests) * MEASURED_ROUNDS} responses left one open",
        opened=begun,
        left_open=open_after,
    )


async def session_state(lab: Lab) -> Finding:
    _, statements = await measure(lab)
    setting = [statement.sql.strip() for statement in statements if statement.sets_session_state]
    prepared = {statement.name for statement in statements if statement.name}
    example = f", such as {json.dumps(setting[0][:60])}" if setting else ""
    return conclude(
        not setting,
        f"{len(set(setting))} different statements set session state{example};"
        f" {len(prepared)} named prepared statements",
        statements=len(set(setting)),
        named_prepared_statements=len(prepared),
    )


async def repeated_events(lab: Lab) -> Finding:
    """Send ten events to one process, then ten to two processes, two at a time."""
    results: list[InvocationResult] = []
    async with lab.fleet(lab.direct()) as fleet:
        for number in range(10):
            results.append(await fleet.invoke(lab.event(number)))
    processes = len({result.pid for result in results})
    async with lab.fleet(lab.direct(), concurrency=2) as fleet:
        await lab.warm_up(fleet, 2)
        for number in range(0, 10, 2):
            results += await asyncio.gather(
                fleet.invoke(lab.event(number)), fleet.invoke(lab.event(number + 1))
            )
    incorrect = [
        responses.describe(result)
        for number, result in enumerate(results)
        if not lab.is_correct(number % 10, result)
    ]
    correct = len(results) - len(incorrect)
    return conclude(
        not incorrect and processes == 1,
        f"{correct} of {len(results)} correct; the first ten in {processes}"
        f" process{'es' if processes > 1 else ''}" + (f"; {incorrect[0]}" if incorrect else ""),
        right=correct,
        processes=processes,
    )
