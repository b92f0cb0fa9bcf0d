"""Behind PgBouncer in transaction pooling: the right answers, and what exhaustion does."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from handler.warm.database.connection import connector
from infra.local.examine import answers, requests
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import Lab
from infra.local.pgbouncer import PgBouncer

#: Sandboxes, and server connections that they share.
SANDBOXES, SERVER_CONNECTIONS = 4, 2


async def transaction_pooling(lab: Lab) -> Finding:
    wrong: list[str] = []
    # Some drivers prepare a statement at its sixth use on a connection.
    rounds = 8 if lab.inputs.fast else 15
    with lab.bouncer(default_pool_size=SERVER_CONNECTIONS) as bouncer:
        fleet = lab.fleet(
            lab.pooled(bouncer), concurrency=SANDBOXES, fork_server=await lab.fork_server()
        )
        async with fleet:
            for number in range(rounds):
                found = await asyncio.gather(
                    *(fleet.invoke(lab.event(number + each)) for each in range(SANDBOXES))
                )
                wrong += [
                    answers.described(answer)
                    for each, answer in enumerate(found)
                    if not lab.is_right(number + each, answer)
                ]
    total = rounds * SANDBOXES
    with contextlib.suppress(UnknownError):
        statements = (await requests.measure(lab)).all_statements
    names = {each.name for each in statements if each.name}
    compared = "" if all(lab.stable) else ", some by their status alone"
    return decided(
        not wrong,
        f"{total - len(wrong)} of {total} right{compared}, {SANDBOXES} sandboxes on"
        f" {SERVER_CONNECTIONS} server connections; {len(names)} named prepared statements"
        + (f"; {wrong[0]}" if wrong else ""),
        requests=total,
        right=total - len(wrong),
        named_prepared_statements=len(names),
    )


async def exhaustion(lab: Lab) -> Finding:
    """Every server connection is held by somebody else. How often does a request try?"""
    count, attempts = 3, 0
    statuses: list[str] = []
    timed_out = succeeded = 0
    with lab.bouncer(default_pool_size=1, query_wait_timeout=1) as bouncer:
        async with lab.fleet(lab.pooled(bouncer)) as fleet:
            first = await fleet.invoke(lab.event(0))
            if not lab.is_right(0, first):
                raise UnknownError(f"it does not serve: {answers.described(first)}")
            async with _pool_held(lab, bouncer):
                refused = _refused(bouncer)
                for number in range(count):
                    answer = await fleet.invoke(lab.event(number))
                    timed_out += answer.error == "Sandbox.Timedout"
                    succeeded += not answers.failed(answer) and (answers.status(answer) or 0) < 429
                    statuses.append(str(answer.error or answers.status(answer)))
                attempts = _refused(bouncer) - refused
    if succeeded == count or not attempts:
        raise UnknownError(f"it asked for no server connection: {', '.join(statuses)}")
    each = attempts / count
    return decided(
        each < 2 and not timed_out and not succeeded,
        f"{each:.1f} attempts for each request; answered {', '.join(sorted(set(statuses)))}",
        attempts_per_request=round(each, 2),
        timed_out=timed_out,
        statuses=", ".join(statuses),
    )


def _refused(bouncer: PgBouncer) -> int:
    """Clients that waited in vain for a server connection."""
    return bouncer.log_since_start().count("closing because: query_wait_timeout")


@contextlib.asynccontextmanager
async def _pool_held(lab: Lab, bouncer: PgBouncer) -> AsyncIterator[None]:
    """Somebody has the one server connection in a transaction, and goes on with it."""
    stranger: Any = await connector(lab.stack.settings(through=bouncer))()
    await stranger.execute("BEGIN")

    async def go_on() -> None:
        while True:
            await stranger.execute("SELECT 1")
            await asyncio.sleep(0.5)

    busy = asyncio.create_task(go_on())
    try:
        yield
    finally:
        busy.cancel()
        await asyncio.wait({busy})
        stranger.terminate()
