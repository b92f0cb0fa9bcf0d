"""A query that takes longer than the function's timeout."""

from infra.database.roles import APP
from infra.local.examine import answers
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import BACKENDS, Lab, frozen, is_true_within, warm

#: The function's, in seconds: less than the role's `statement_timeout` of 5.
TIMEOUT_S = 3.0
#: After the answer, until the query must be gone.
CANCELLED_WITHIN_S = 1.0
ACTIVE = f"{BACKENDS} AND state = 'active'"


async def deadline(lab: Lab) -> Finding:
    if not lab.tables:
        raise UnknownError("no table is seen in what it asks, so no query can be made to wait")
    async with (
        lab.fleet(lab.direct(), timeout=TIMEOUT_S) as fleet,
        lab.admin() as admin,
        lab.admin() as locker,
    ):
        await warm(lab, fleet, 1)
        await frozen(fleet)
        [sandbox] = fleet.sandboxes
        async with locker.transaction():
            names = ", ".join(f'"{name}"' for name in lab.tables)
            await locker.execute("SET LOCAL lock_timeout = '2s'")
            await locker.execute(f"LOCK TABLE {names} IN ACCESS EXCLUSIVE MODE")
            answer = await fleet.invoke(lab.event(0))
            if lab.is_right(0, answer):
                raise UnknownError(f"its query did not wait for a lock of {names}")

            async def is_cancelled() -> bool:
                return not await admin.fetchval(ACTIVE, APP)

            cancelled = await is_true_within(CANCELLED_WITHIN_S, is_cancelled)
        again = await fleet.invoke(lab.event(0))
    answered = answer.error != "Sandbox.Timedout"
    survives = again.pid == sandbox.pid and lab.is_right(0, again)
    shown = answer.error or f"status {answers.status(answer)}"
    return decided(
        answered and cancelled and survives,
        f"the caller gets {shown} after {answer.ms / 1000:.1f} s;"
        f" the query {'is cancelled' if cancelled else 'runs on'};"
        f" the sandbox {'survives' if survives else 'does not'}",
        answered=answered,
        answered_after_s=round(answer.ms / 1000, 2),
        cancelled=cancelled,
        survives=survives,
    )
