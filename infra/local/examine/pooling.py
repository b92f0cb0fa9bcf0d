"""Behind PgBouncer in transaction pooling: correct responses, and behaviour on exhaustion."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from handler.warm.database.connection import connector
from infra.local.examine import requests, responses
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import Lab
from infra.local.pgbouncer import PgBouncer

SANDBOXES, SERVER_CONNECTIONS = 4, 2
EXHAUSTED_REQUESTS = 3


async def transaction_pooling(lab: Lab) -> Finding:
    incorrect: list[str] = []
    # Some drivers prepare a statement when a connection executes it for the sixth time.
    rounds = 8 if lab.inputs.fast else 15
    with lab.bouncer(default_pool_size=SERVER_CONNECTIONS) as bouncer:
        fleet = await lab.forked_fleet(lab.pooled(bouncer), concurrency=SANDBOXES)
        async with fleet:
            for start in range(rounds):
                indexes = range(start, start + SANDBOXES)
                results = await asyncio.gather(
                    *(fleet.invoke(lab.event(index)) for index in indexes)
                )
                incorrect += [
                    responses.describe(result)
                    for index, result in zip(indexes, results, strict=True)
                    if not lab.is_correct(index, result)
                ]
    total = rounds * SANDBOXES
    _, statements = await requests.measure(lab)
    prepared = {statement.name for statement in statements if statement.name}
    compared = "" if all(lab.baseline.are_stable) else ", some compared by status only"
    return conclude(
        not incorrect,
        f"{total - len(incorrect)} of {total} correct{compared}, {SANDBOXES} sandboxes on"
        f" {SERVER_CONNECTIONS} server connections; {len(prepared)} named prepared statements"
        + (f"; {incorrect[0]}" if incorrect else ""),
        requests=total,
        right=total - len(incorrect),
        named_prepared_statements=len(prepared),
    )


async def exhaustion(lab: Lab) -> Finding:
    """Count how often a request tries while another client holds the only server connection."""
    results = []
    with lab.bouncer(default_pool_size=1, query_wait_timeout=1) as bouncer:
        async with lab.fleet(lab.pooled(bouncer)) as fleet:
            first = await fleet.invoke(lab.event(0))
            if not lab.is_correct(0, first):
                raise UnknownError(f"an event fails: {responses.describe(first)}")
            async with _exhausted(lab, bouncer):
                refused_before = _count_refused(bouncer)
                for number in range(EXHAUSTED_REQUESTS):
                    results.append(await fleet.invoke(lab.event(number)))
                attempts = _count_refused(bouncer) - refused_before
    statuses = [str(result.error or responses.status(result)) for result in results]
    timed_out = sum(result.error == "Sandbox.Timedout" for result in results)
    succeeded = sum(
        not responses.has_failed(result) and (responses.status(result) or 0) < 429
        for result in results
    )
    if succeeded == EXHAUSTED_REQUESTS or not attempts:
        raise UnknownError(f"it used no server connection: {', '.join(statuses)}")
    attempts_per_request = attempts / EXHAUSTED_REQUESTS
    return conclude(
        attempts_per_request < 2 and not timed_out and not succeeded,
        f"{attempts_per_request:.1f} attempts for each request; the response is"
        f" {', '.join(sorted(set(statuses)))}",
        attempts_per_request=round(attempts_per_request, 2),
        timed_out=timed_out,
        statuses=", ".join(statuses),
    )


def _count_refused(bouncer: PgBouncer) -> int:
    """Return how many clients PgBouncer closed because they waited too long."""
    return bouncer.log_since_start().count("closing because: query_wait_timeout")


@contextlib.asynccontextmanager
async def _exhausted(lab: Lab, bouncer: PgBouncer) -> AsyncIterator[None]:
    """Hold the only server connection in a transaction that is never idle for long."""
    other_client: Any = await connector(lab.stack.settings(through=bouncer))()
    await other_client.execute("BEGIN")

    async def send_queries() -> None:
        while True:
            await other_client.execute("SELECT 1")
            await asyncio.sleep(0.5)

    sending = asyncio.create_task(send_queries())
    try:
        yield
    finally:
        sending.cancel()
        await asyncio.wait({sending})
        other_client.terminate()
