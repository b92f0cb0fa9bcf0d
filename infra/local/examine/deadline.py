"""A query that takes longer than the function's timeout."""

from functools import partial

from infra.local.examine import responses
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import BACKENDS, Lab, becomes_true, has_no_backends, wait_until_frozen

#: The function's timeout in seconds, below the role's `statement_timeout` of 5.
TIMEOUT_S = 3.0
#: How long after the response the query may run.
CANCELLED_WITHIN_S = 1.0
#: The backends whose query waits for the lock of the tables.
WAITING = f"{BACKENDS} AND wait_event_type = 'Lock'"


async def deadline(lab: Lab) -> Finding:
    if not lab.baseline.tables:
        raise UnknownError("the function uses no known table, so its query cannot be delayed")
    async with (
        lab.fleet(lab.direct(), timeout=TIMEOUT_S) as fleet,
        lab.admin() as admin,
        lab.admin() as locker,
    ):
        await lab.warm_up(fleet, 1)
        await wait_until_frozen(fleet)
        [sandbox] = fleet.sandboxes
        async with locker.transaction():
            tables = ", ".join(f'"{name}"' for name in lab.baseline.tables)
            await locker.execute("SET LOCAL lock_timeout = '2s'")
            await locker.execute(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE")
            result = await fleet.invoke(lab.event(0))
            if lab.is_correct(0, result):
                raise UnknownError(f"its query did not wait for a lock of {tables}")
            is_cancelled = partial(has_no_backends, admin, WAITING)
            cancelled = await becomes_true(is_cancelled, CANCELLED_WITHIN_S)
        next_result = await fleet.invoke(lab.event(0))
    responded = result.error != "Sandbox.Timedout"
    survives = next_result.pid == sandbox.pid and lab.is_correct(0, next_result)
    response = result.error or f"status {responses.status(result)}"
    return conclude(
        responded and cancelled and survives,
        f"the caller gets {response} after {result.ms / 1000:.1f} s;"
        f" the query {'is cancelled' if cancelled else 'continues'};"
        f" the sandbox {'survives' if survives else 'does not survive'}",
        answered=responded,
        answered_after_s=round(result.ms / 1000, 2),
        cancelled=cancelled,
        survives=survives,
    )
