"""The properties: what each is called, what lacking it costs, and the lines that add it.

The names are fixed: they are in reports, in `ONLY`, `SKIP` and `REQUIRE`, and in docs/examine.md.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from infra.local.examine import (
    column_types,
    deadline,
    deployment,
    ending,
    freezing,
    memory,
    outages,
    pooling,
    requests,
    start,
)
from infra.local.examine.finding import Finding
from infra.local.examine.lab import Lab

Measure = Callable[[Lab], Awaitable[Finding]]
Need = Callable[[Lab], Awaitable[str | None]]
Numbers = Mapping[str, float | int | str | bool | None]


async def repeats(lab: Lab) -> str | None:
    return None if lab.repeats else "it does not serve a second event: see `events`"


async def ends_transactions(lab: Lab) -> str | None:
    return "it leaves a transaction open: see `transactions`" if lab.open_transactions else None


async def works_pooled(lab: Lab) -> str | None:
    if await lab.works_pooled():
        return None
    return "it is not right through transaction pooling: see `pooling`"


async def holds_nothing(lab: Lab) -> str | None:
    """Several sandboxes that each hold a server connection wait for one another."""
    if not await lab.works_pooled() or not await freezing.held_while_frozen(lab):
        return None
    return "it holds a server connection while it does nothing: see `frozen`"


def recovered_late(numbers: Numbers) -> bool:
    seconds = [value for name, value in numbers.items() if name.startswith("recovery_")]
    return any(isinstance(each, float) and each > outages.RECOVERY_LIMIT_S for each in seconds)


@dataclass(frozen=True)
class Reason:
    """Why a property is missing, where there are several. `applies`: judged by the numbers."""

    applies: Callable[[Numbers], bool]
    cost: str
    remedy: str


SLOW_RECOVERY = Reason(
    recovered_late,
    "After a failover each warm sandbox goes on failing until Lambda replaces it.",
    "Drop a connection after an error that means it is lost, as SQLAlchemy's pool does; hold no"
    " connection in a global variable.",
)


@dataclass(frozen=True)
class Property:
    """`cost`: what happens without it. `remedy`: what to change, with the lines. `needs`: what else
    has to hold, since without that this could not be told. `reasons`: texts to print in place of
    both, for each reason that applies."""

    name: str
    title: str
    measure: Measure
    cost: str
    remedy: str
    needs: tuple[Need, ...] = ()
    reasons: tuple[Reason, ...] = ()

    def advice(self, numbers: Numbers) -> list[tuple[str, str]]:
        """Return the costs and remedies that fit what was measured."""
        found = [(each.cost, each.remedy) for each in self.reasons if each.applies(numbers)]
        return found or [(self.cost, self.remedy)]


PROPERTIES = {
    each.name: each
    for each in (
        Property(
            "start",
            "starts within the init limit",
            start.starts,
            "Lambda ends an init phase after 10 s and runs it again within the first invocation,"
            " whose caller waits for both.",
            "Import less and compile the bytecode in the image (`python -m compileall`); connect in"
            " the first event, not at import.",
        ),
        Property(
            "events",
            "serves event after event in one process, and two processes at once",
            requests.repeated_events,
            "From the second event on each request fails with `Event loop is closed` or `attached"
            " to a different loop`.",
            "Keep one event loop for the life of the process:\n"
            "    loop = asyncio.new_event_loop()\n"
            "    def handler(event, context):\n"
            "        return loop.run_until_complete(serve(event))\n"
            "With Mangum: `asyncio.set_event_loop(asyncio.new_event_loop())` before"
            ' `Mangum(app, lifespan="off")`.',
        ),
        Property(
            "round_trips",
            "one round trip for each statement, and two for a transaction",
            requests.round_trips,
            "Each further round trip adds the network's latency to every request.",
            "Keep the connection (no NullPool), do not ping it, and read in autocommit:\n"
            "    create_async_engine(url, pool_size=1, max_overflow=0, pool_pre_ping=False,\n"
            "                        isolation_level='AUTOCOMMIT')\n"
            "Instead of the ping, look at the socket at checkout: see `thaw`.",
            needs=(repeats,),
        ),
        Property(
            "transactions",
            "leaves no transaction open after an answer",
            requests.transactions,
            "A sandbox frozen inside a transaction pins a server connection, and its locks, until"
            " idle_transaction_timeout.",
            "End the transaction before the answer: `async with session.begin():`, or"
            " `async with AsyncSession(engine) as session:` around all of the work.",
            needs=(repeats,),
        ),
        Property(
            "session_state",
            "leaves no session state on a server connection",
            requests.session_state,
            "In transaction pooling, SET, LISTEN, advisory locks and temporary tables of one"
            " sandbox are met by the next one.",
            "Set parameters on the role (`ALTER ROLE … IN DATABASE … SET …`) or with `SET LOCAL`"
            " inside a transaction; use pg_advisory_xact_lock; and reset in PgBouncer:"
            " `server_reset_query_always = 1`.",
            needs=(repeats,),
        ),
        Property(
            "pooling",
            "right through transaction pooling",
            pooling.transaction_pooling,
            "Requests fail with `prepared statement … does not exist` or `already exists`, and the"
            " function cannot use a pooler at all.",
            "Use unnamed statements only. asyncpg: `statement_cache_size=0` (SQLAlchemy:"
            " `connect_args={'statement_cache_size': 0}`). psycopg: `prepare_threshold=None`. Plain"
            " asyncpg can then have only one of `round_trips` and `column_types`; for both, use"
            " psycopg, or the engine in handler/warm.",
            needs=(repeats, ends_transactions, holds_nothing),
        ),
        Property(
            "frozen",
            "holds no server connection while frozen, behind PgBouncer",
            freezing.frozen_holds,
            "Every idle sandbox takes one of Postgres' connections until Lambda ends it.",
            "End each transaction before the answer, and use no session pooling, no LISTEN and no"
            " advisory lock that outlasts a transaction.",
            needs=(ends_transactions, works_pooled),
        ),
        Property(
            "thaw",
            "recovers after a freeze in which the server closed its connection",
            freezing.thaw,
            "The first request after each longer pause fails.",
            "Look at the socket when a connection is checked out, and repeat once what may be"
            " repeated:\n"
            "    @event.listens_for(engine.sync_engine, 'checkout')\n"
            "    def check(connection, record, proxy):\n"
            "        driver = connection.driver_connection\n"
            "        socket = driver  # psycopg; with asyncpg:\n"
            "        # socket = driver._transport.get_extra_info('socket')\n"
            "        poll = select.poll()\n"
            "        poll.register(socket.fileno(), select.POLLIN)\n"
            "        if poll.poll(0):\n"
            "            raise DisconnectionError('closed while idle')\n"
            "`pool_pre_ping=True` does it as well, at a round trip for every request. All of the"
            " lines: tests/examine/recipes/every_property.py.",
            needs=(repeats,),
        ),
        Property(
            "shutdown",
            "closes its connections at SIGTERM",
            ending.shutdown,
            "Each ended sandbox leaves connections that the server has to find out about; of one"
            " that vanished, minutes later.",
            "Register an internal extension, which gives the process SIGTERM and 500 ms, and close"
            " the pool there: `call_at_shutdown` in tests/examine/recipes/every_property.py.",
        ),
        Property(
            "deployment",
            "no request fails during a deployment, through PgBouncer",
            deployment.deployment,
            "Old and new sandboxes together need more connections than there are, and requests"
            " fail with `too many clients already`.",
            "One connection for each sandbox (`pool_size=1, max_overflow=0`), through PgBouncer in"
            " transaction pooling, opened in the first event.",
            needs=(repeats, ends_transactions, works_pooled, holds_nothing),
        ),
        Property(
            "restarts",
            "recovers when Postgres and PgBouncer were restarted",
            outages.restarts,
            SLOW_RECOVERY.cost,
            SLOW_RECOVERY.remedy,
            needs=(repeats, ends_transactions, holds_nothing),
            reasons=(
                Reason(
                    lambda numbers: bool(numbers.get("rows_doubled")),
                    "A caller who got no answer sends its write again, and it is made twice.",
                    "Insert the key in the transaction of the write, into a column with a unique"
                    " index, and write nothing if the key is there: `place_order` in"
                    " tests/examine/recipes/every_property.py.",
                ),
                Reason(
                    lambda numbers: bool(numbers.get("rows_lost")),
                    "Rows are missing of a write that was confirmed, or sent again with its key.",
                    "Answer only after the commit, with `synchronous_commit` on, and write the key"
                    " and the rows in one transaction: a key without its rows makes a repetition"
                    " write nothing.",
                ),
                SLOW_RECOVERY,
            ),
        ),
        Property(
            "deadline",
            "answers before the time-out, cancels its query and survives",
            deadline.deadline,
            "The caller gets a bare error of Lambda's, the query goes on and holds its locks, and"
            " the next request pays for a cold start.",
            "Bound the work by the time that is left:\n"
            "    seconds = context.get_remaining_time_in_millis() / 1000 - 0.5\n"
            "    async with asyncio.timeout(seconds): ...\n"
            "Answer 504 after it (`WithinDeadline` in tests/examine/recipes/every_property.py);"
            " set `statement_timeout` on the role below the function's time-out.",
            needs=(repeats, ends_transactions),
        ),
        Property(
            "exhaustion",
            "does not retry against an exhausted pool",
            pooling.exhaustion,
            "Each caller becomes several, at the moment at which the database has no room for one.",
            "Answer 503 with `Retry-After` to `too many clients`, `query_wait_timeout` and"
            " `no more connections allowed`; retry only a lost connection.",
            needs=(repeats, ends_transactions, works_pooled, holds_nothing),
        ),
        Property(
            "column_types",
            "right, or an error, after a column changed its type",
            column_types.column_types,
            "After a migration a warm process reads wrong values, without any error.",
            "Let no cached description of a statement outlive a change. psycopg keeps none. With"
            " asyncpg: `prepared_statement_cache_size=0` besides `statement_cache_size=0`, at a"
            ' round trip more, so that `round_trips` is a "no". For both, use psycopg, or the'
            " engine in handler/warm.",
            needs=(repeats, ends_transactions),
        ),
        Property(
            "memory",
            "keeps its memory over 1,000 requests",
            memory.memory,
            "The sandbox is ended by Lambda for want of memory, in the midst of a request.",
            "Bound every cache and list that lives as long as the process; see `tracemalloc`.",
            needs=(repeats,),
        ),
    )
}
