"""A warm request: what it asks of the database, and what it leaves there."""

import asyncio
import json
from dataclasses import dataclass, field
from statistics import median
from weakref import WeakKeyDictionary

from infra.database.roles import APP
from infra.local.examine import answers
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import IN_TRANSACTION, Lab, frozen, warm
from infra.local.examine.statements import Statement
from infra.local.tcp_proxy import TcpProxy

#: Requests before the first that is measured: some drivers prepare a statement at its sixth use.
WARM_UP, MEASURED = 7, 3


@dataclass
class WarmRequest:
    """What one event's request costs, in the median."""

    round_trips: float = 0
    connections: float = 0
    statements: list[Statement] = field(default_factory=list)
    left_in_transaction: int = 0

    @property
    def work(self) -> int:
        return sum(each.is_work for each in self.statements)

    @property
    def transactions(self) -> int:
        return sum(each.begins for each in self.statements)

    @property
    def allowed(self) -> int:
        return self.work + 2 * self.transactions


@dataclass
class WarmRequests:
    by_event: list[WarmRequest]
    #: From the first connection on.
    all_statements: list[Statement]


_measured: WeakKeyDictionary[Lab, WarmRequests] = WeakKeyDictionary()


async def measure(lab: Lab) -> WarmRequests:
    """Straight to Postgres, where nobody else's statements are in its log. Measured once."""
    if lab not in _measured:
        _measured[lab] = await _measure(lab)
    return _measured[lab]


async def _measure(lab: Lab) -> WarmRequests:
    found: list[WarmRequest] = []
    everything: list[Statement] = []
    postgres = lab.stack.postgres
    lab.statements.mark()
    with TcpProxy(postgres.host, postgres.port) as proxy:
        async with lab.fleet(lab.direct(proxy.port)) as fleet, lab.admin() as admin:
            for _ in range(WARM_UP):
                for index in range(len(lab.inputs.events)):
                    answer = await fleet.invoke(lab.event(index))
                    if answers.failed(answer):
                        raise UnknownError(f"it does not serve: {answers.described(answer)}")
            everything += lab.statements.since_mark()
            for index in range(len(lab.inputs.events)):
                trips, connections, request = [], [], WarmRequest()
                for _ in range(MEASURED):
                    await frozen(fleet)
                    lab.statements.mark()
                    proxy.reset_counters()
                    await fleet.invoke(lab.event(index))
                    await frozen(fleet)
                    trips.append(proxy.round_trips)
                    connections.append(proxy.connections)
                    request.statements = lab.statements.since_mark()
                    everything += request.statements
                    request.left_in_transaction += await admin.fetchval(IN_TRANSACTION, APP)
                request.round_trips, request.connections = median(trips), median(connections)
                found.append(request)
    return WarmRequests(found, everything)


async def round_trips(lab: Lab) -> Finding:
    """At most one for each statement of the function's own, and two for a transaction."""
    measured = (await measure(lab)).by_event
    worst = max(measured, key=lambda each: each.round_trips - each.allowed + each.connections)
    kept = all(each.round_trips <= each.allowed and not each.connections for each in measured)
    connections = f", {worst.connections:g} new connections" if worst.connections else ""
    return decided(
        kept,
        f"{worst.round_trips:g} round trips for {worst.work} statements of its own"
        f" and {worst.transactions} transactions{connections}",
        round_trips=worst.round_trips,
        statements=worst.work,
        transactions=worst.transactions,
        connections=worst.connections,
    )


async def transactions(lab: Lab) -> Finding:
    measured = (await measure(lab)).by_event
    opened = sum(each.transactions for each in measured)
    left = sum(each.left_in_transaction for each in measured)
    return decided(
        not left,
        f"{opened} opened in {len(measured)} requests; {left} of {len(measured) * MEASURED}"
        " answers left one open",
        opened=opened,
        left_open=left,
    )


async def session_state(lab: Lab) -> Finding:
    statements = (await measure(lab)).all_statements
    leaving = [each.sql.strip() for each in statements if each.leaves_state]
    names = {each.name for each in statements if each.name}
    shown = f", such as {json.dumps(leaving[0][:60])}" if leaving else ""
    return decided(
        not leaving,
        f"{len(set(leaving))} kinds of statement leave session state{shown};"
        f" {len(names)} named prepared statements",
        statements=len(set(leaving)),
        named_prepared_statements=len(names),
    )


async def repeated_events(lab: Lab) -> Finding:
    """Ten events in one process, then ten in two processes, two at a time."""
    wrong: list[str] = []
    async with lab.fleet(lab.direct()) as fleet:
        pids = set()
        for number in range(10):
            answer = await fleet.invoke(lab.event(number))
            pids.add(answer.pid)
            if not lab.is_right(number, answer):
                wrong.append(answers.described(answer))
    processes = len(pids)
    async with lab.fleet(lab.direct(), concurrency=2) as fleet:
        await warm(lab, fleet, 2)
        for number in range(0, 10, 2):
            pair = await asyncio.gather(
                *(fleet.invoke(lab.event(each)) for each in (number, number + 1))
            )
            for offset, answer in enumerate(pair):
                if not lab.is_right(number + offset, answer):
                    wrong.append(answers.described(answer))
    return decided(
        not wrong and processes == 1,
        f"{20 - len(wrong)} of 20 right; ten in {processes} process"
        + ("es" if processes > 1 else "")
        + (f"; {wrong[0]}" if wrong else ""),
        right=20 - len(wrong),
        processes=processes,
    )
