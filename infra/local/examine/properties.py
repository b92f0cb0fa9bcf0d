"""The properties that `make examine` measures, with the consequences of a "no" and a remedy.

The names are fixed: they are in reports, in `ONLY`, `SKIP` and `REQUIRE`, and in docs/examine.md.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

from infra.local.examine import (
    cold_start,
    column_types,
    deadline,
    deployment,
    freezing,
    memory,
    outages,
    pooling,
    requests,
    shutdown,
)
from infra.local.examine.finding import Finding, Value
from infra.local.examine.lab import Lab, works_pooled

Numbers = Mapping[str, Value]


async def repeats(lab: Lab) -> str | None:
    if lab.baseline.serves_repeatedly:
        return None
    return "the function does not serve a second event: see `events`"


async def ends_transactions(lab: Lab) -> str | None:
    if not lab.baseline.open_transactions:
        return None
    return "the function leaves a transaction open: see `transactions`"


async def supports_pooling(lab: Lab) -> str | None:
    if await works_pooled(lab):
        return None
    return "the function is not correct with transaction pooling: see `pooling`"


async def holds_nothing(lab: Lab) -> str | None:
    """Sandboxes that keep server connections would wait for each other."""
    if not await works_pooled(lab) or not await freezing.held_while_frozen(lab):
        return None
    return "the function holds a server connection between events: see `frozen`"


@dataclass(frozen=True)
class Cause:
    """One of several causes of a "no". `applies` judges by the finding's numbers."""

    applies: Callable[[Numbers], bool]
    consequence: str
    remedy: str


@dataclass(frozen=True)
class Property:
    """A property of a function. `prerequisites` return why it cannot be measured, or None.
    `consequence` and `remedy` are for a "no"; `causes` that apply replace both."""

    name: str
    title: str
    measure: Callable[[Lab], Awaitable[Finding]]
    consequence: str
    remedy: str
    prerequisites: tuple[Callable[[Lab], Awaitable[str | None]], ...] = ()
    causes: tuple[Cause, ...] = ()

    def advice(self, numbers: Numbers) -> list[tuple[str, str]]:
        """Return pairs of a consequence and a remedy that fit the measurement."""
        applying = [
            (cause.consequence, cause.remedy) for cause in self.causes if cause.applies(numbers)
        ]
        return applying or [(self.consequence, self.remedy)]


def _recovers_late(numbers: Numbers) -> bool:
    seconds = [value for name, value in numbers.items() if name.startswith("recovery_")]
    return any(isinstance(value, float) and value > outages.RECOVERY_LIMIT_S for value in seconds)


SLOW_RECOVERY = Cause(
    _recovers_late,
    "After a failover, each warm sandbox fails until Lambda replaces it.",
    "Discard a connection after an error that means it is lost, as SQLAlchemy's pool does, and do"
    " not keep a connection in a global variable.",
)

_ALL = (
    Property(
        "start",
        "starts within the init limit",
        cold_start.cold_start,
        "Lambda ends the init phase after 10 s and repeats it in the first invocation, so the first"
        " caller waits for both.",
        "Import less, compile the bytecode in the image (`python -m compileall`), and connect in"
        " the first event instead of at import.",
    ),
    Property(
        "events",
        "serves event after event in one process, and two processes at once",
        requests.repeated_events,
        "From the second event on, each request fails with `Event loop is closed` or `attached to a"
        " different loop`.",
        "Keep one event loop for the life of the process:\n"
        "    loop = asyncio.new_event_loop()\n"
        "    def handler(event, context):\n"
        "        return loop.run_until_complete(serve(event))\n"
        "With Mangum, call `asyncio.set_event_loop(asyncio.new_event_loop())` before"
        ' `Mangum(app, lifespan="off")`.',
    ),
    Property(
        "round_trips",
        "one round trip for each statement, and two for a transaction",
        requests.round_trips,
        "Each additional round trip adds the network's latency to every request.",
        "Keep the connection, do not ping it, and read in autocommit mode:\n"
        "    engine = create_async_engine(url, pool_size=1, max_overflow=0)\n"
        "    reading = engine.execution_options(isolation_level='AUTOCOMMIT')  # reads only\n"
        "Keep writes that belong together in one transaction. Instead of the ping, check the socket"
        " at checkout and retry idempotent work: see `thaw`.",
        prerequisites=(repeats,),
        causes=(
            Cause(
                lambda numbers: bool(numbers.get("connections")),
                "Each request opens connections, which takes several round trips. If it does not"
                " close them, one sandbox is enough to exhaust Postgres.",
                "Create the engine once per process, and keep its connection (no NullPool):\n"
                "    engine = create_async_engine(url, pool_size=1, max_overflow=0)",
            ),
        ),
    ),
    Property(
        "transactions",
        "leaves no transaction open after a response",
        requests.transactions,
        "A sandbox that is frozen in a transaction keeps a server connection and its locks until"
        " idle_transaction_timeout.",
        "End the transaction before the response: use `async with session.begin():`, or do all of"
        " the work in `async with AsyncSession(engine) as session:`.",
        prerequisites=(repeats,),
    ),
    Property(
        "session_state",
        "leaves no session state on a server connection",
        requests.session_state,
        "With transaction pooling, the next sandbox on the server connection inherits the effects"
        " of SET and LISTEN, advisory locks and temporary tables.",
        "Set parameters on the role (`ALTER ROLE … IN DATABASE … SET …`) or with `SET LOCAL` in a"
        " transaction, use pg_advisory_xact_lock, and let PgBouncer reset the session with"
        " `server_reset_query_always = 1`.",
        prerequisites=(repeats,),
    ),
    Property(
        "pooling",
        "correct with transaction pooling",
        pooling.transaction_pooling,
        "Requests fail with `prepared statement … does not exist` or `already exists`, so the"
        " function cannot use a pooler that does not track prepared statements.",
        "Use only unnamed statements. asyncpg: `statement_cache_size=0` (SQLAlchemy:"
        " `connect_args={'statement_cache_size': 0}`). psycopg: `prepare_threshold=None`. With"
        " plain asyncpg you can then have either `round_trips` or `column_types`; to have both, use"
        " psycopg, or the engine in handler/warm.",
        prerequisites=(repeats, ends_transactions, holds_nothing),
    ),
    Property(
        "frozen",
        "holds no server connection while frozen, behind PgBouncer",
        freezing.frozen,
        "Every idle sandbox occupies one of Postgres' connections until Lambda ends it.",
        "End each transaction before the response, and do not use session pooling, LISTEN, or"
        " advisory locks that outlast a transaction.",
        prerequisites=(ends_transactions, supports_pooling),
    ),
    Property(
        "thaw",
        "recovers after a freeze in which the server closed its connection",
        freezing.thaw,
        "The first request after such a freeze fails.",
        "Check the socket when a connection is checked out, which detects a FIN:\n"
        "    import select as sockets\n"
        "    @event.listens_for(engine.sync_engine, 'checkout')\n"
        "    def check(connection, record, proxy):\n"
        "        driver = connection.driver_connection\n"
        "        socket = driver  # psycopg; with asyncpg:\n"
        "        # socket = driver._transport.get_extra_info('socket')\n"
        "        poll = sockets.poll()\n"
        "        poll.register(socket.fileno(), sockets.POLLIN)\n"
        "        if poll.poll(0):\n"
        "            raise DisconnectionError('closed while idle')\n"
        "If packets are lost, only a failing statement shows it, so also retry idempotent work"
        " once: see `run` in tests/examine/recipes/every_property.py. `pool_pre_ping=True` detects"
        " both, but costs a round trip for every request.",
        prerequisites=(repeats,),
    ),
    Property(
        "shutdown",
        "closes its connections at SIGTERM",
        shutdown.shutdown,
        "Each sandbox that ends leaves connections open until the server notices; if the sandbox"
        " vanished, this takes minutes.",
        "Register an internal extension, for which Lambda sends SIGTERM and waits 500 ms, and close"
        " the pool then: see `call_at_shutdown` in tests/examine/recipes/every_property.py.",
    ),
    Property(
        "deployment",
        "no request fails during a deployment, through PgBouncer",
        deployment.deployment,
        "Old and new sandboxes together need more connections than Postgres has, and requests fail"
        " with `too many clients already`.",
        "Use one connection for each sandbox (`pool_size=1, max_overflow=0`), through PgBouncer in"
        " transaction pooling, and open it in the first event.",
        prerequisites=(repeats, ends_transactions, supports_pooling, holds_nothing),
    ),
    Property(
        "restarts",
        "recovers after Postgres or PgBouncer was restarted",
        outages.restarts,
        SLOW_RECOVERY.consequence,
        SLOW_RECOVERY.remedy,
        prerequisites=(repeats, ends_transactions, holds_nothing),
        causes=(
            Cause(
                lambda numbers: bool(numbers.get("rows_doubled")),
                "A caller who got no response sends its write again, and it takes effect twice.",
                "Insert the key in the transaction of the write, into a column with a unique index,"
                " and write nothing if the key exists: see `place_order` in"
                " tests/examine/recipes/every_property.py.",
            ),
            Cause(
                lambda numbers: bool(numbers.get("rows_lost")),
                "Rows are missing, although their write was confirmed or repeated with its key.",
                "Respond only after the commit, with `synchronous_commit` on, and write the key and"
                " the rows in one transaction: if a key exists without its rows, a repeated write"
                " does nothing.",
            ),
            SLOW_RECOVERY,
        ),
    ),
    Property(
        "deadline",
        "responds before the timeout, cancels its query and survives",
        deadline.deadline,
        "The caller gets Lambda's error without details, the query continues and keeps its locks,"
        " and the next request has a cold start.",
        "Limit the work to the remaining time:\n"
        "    seconds = context.get_remaining_time_in_millis() / 1000 - 0.5\n"
        "    async with asyncio.timeout(seconds): ...\n"
        "Then respond with 504 (`WithinDeadline` in tests/examine/recipes/every_property.py), and"
        " set the role's `statement_timeout` below the function's timeout.",
        prerequisites=(repeats, ends_transactions),
    ),
    Property(
        "exhaustion",
        "does not retry against an exhausted pool",
        pooling.exhaustion,
        "Each request becomes several when the database already has too many.",
        "Respond with 503 and `Retry-After` to `too many clients`, `query_wait_timeout` and"
        " `no more connections allowed`. Check for these messages before you retry after a lost"
        " connection, because PgBouncer also closes the connection (`run` in"
        " tests/examine/recipes/every_property.py).",
        prerequisites=(repeats, ends_transactions, supports_pooling, holds_nothing),
    ),
    Property(
        "column_types",
        "correct, or an error, after a column's type changed",
        column_types.column_types,
        "After a migration, a warm process reads wrong values without any error.",
        "Do not cache the description of a statement's result. psycopg does not. With asyncpg, use"
        " `prepared_statement_cache_size=0` in addition to `statement_cache_size=0`; this costs"
        ' another round trip, so `round_trips` becomes a "no". To have both, use psycopg, or the'
        " engine in handler/warm.",
        prerequisites=(repeats, ends_transactions),
    ),
    Property(
        "memory",
        "keeps its memory over 1,000 requests",
        memory.memory,
        "Lambda ends the sandbox during a request because it is out of memory.",
        "Limit the size of each cache and list that exists as long as the process; `tracemalloc`"
        " shows what grows.",
        prerequisites=(repeats,),
    ),
)
PROPERTIES = {entry.name: entry for entry in _ALL}
