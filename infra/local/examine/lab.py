"""The servers and sandboxes that a function is examined on, and its baseline."""

import asyncio
import contextlib
import functools
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote

import asyncpg

from infra.database.roles import APP, OWNER
from infra.local import LabError
from infra.local.examine import responses
from infra.local.examine.baseline import Baseline
from infra.local.examine.finding import UnknownError
from infra.local.examine.inputs import Inputs
from infra.local.examine.logs import Logs
from infra.local.examine.statements import StatementLog
from infra.local.fleet import Fleet, InvocationResult
from infra.local.fleet.fork_server import ForkServer
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack

T = TypeVar("T")

MAX_CONNECTIONS = 40
#: The server connections of a PgBouncer between the function and Postgres.
POOL_SIZE = 5

PREPARATION = f"""
ALTER ROLE {APP} CONNECTION LIMIT -1;
ALTER ROLE {APP} SET log_statement = 'all';
"""
EMPTY_SCHEMA = f"""
DROP SCHEMA public CASCADE;
CREATE SCHEMA public AUTHORIZATION {OWNER};
GRANT USAGE ON SCHEMA public TO {APP};
"""
GRANTS = f"""
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {APP};
GRANT USAGE, SELECT ON ALL SEQUENCES IN SCHEMA public TO {APP};
"""
TABLE_USES = """
SELECT relname::text AS name, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd
  + n_tup_del AS uses
FROM pg_stat_user_tables WHERE schemaname = 'public'
"""
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
IN_TRANSACTION = f"{BACKENDS} AND state LIKE 'idle in transaction%'"


class Lab:
    """The context manager of an examination. `no_filter`: why packets cannot be dropped here, or
    None if they can."""

    def __init__(self, inputs: Inputs, stack: Stack, folder: Path, no_filter: str | None) -> None:
        self.inputs, self.stack, self.no_filter = inputs, stack, no_filter
        self.logs = Logs(folder)
        self.statements = StatementLog(stack.postgres.log)
        self.baseline = Baseline()
        #: Results of functions decorated with `once_per_lab`.
        self.cache: dict[Any, Any] = {}
        self._keys = itertools.count(1)
        self.cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with self.cleanup:
            self.cleanup.callback(asyncio.create_task(self.logs.trim()).cancel)
            async with self.admin() as admin:
                await admin.execute(PREPARATION)
                if self.inputs.schema is not None:
                    await admin.execute(EMPTY_SCHEMA)
            if self.inputs.schema is not None:
                await self._load_schema(self.inputs.schema)
            await self._measure_baseline()
            self.cleanup = self.cleanup.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.cleanup.aclose()

    async def _load_schema(self, schema: Path) -> None:
        password = self.stack.settings(user=OWNER).password.get_secret_value()
        login = {**self.stack.postgres.admin, "user": OWNER, "password": password}
        owner = await asyncpg.connect(**login, database=DATABASE)
        try:
            await owner.execute(await asyncio.to_thread(schema.read_text))
            await owner.execute(GRANTS)
        except asyncpg.PostgresError as error:
            raise LabError(f"SCHEMA {schema} failed: {error}") from None
        finally:
            await owner.close()

    async def _measure_baseline(self) -> None:
        """Send each event twice. Raises LabError if the function fails or uses no database."""
        uses_before = await self._table_uses()
        connections_before = self._count_connections()
        self.statements.mark()
        async with self.fleet(self.direct()) as fleet, self.admin() as admin:
            for index in range(len(self.inputs.events)):
                first = await fleet.invoke(self.event(index))
                if index == 0 and responses.has_failed(first):
                    raise LabError(self._explain_failure(first))
                self.baseline.add(first, await fleet.invoke(self.event(index)))
            await wait_until_frozen(fleet)
            self.baseline.open_transactions = await admin.fetchval(IN_TRANSACTION, APP)
        if self._count_connections() == connections_before:
            raise LabError(
                f"{self.inputs.handler} opened no connection to Postgres. Check that ENV configures"
                " its database and that EVENT uses it"
            )
        in_statements = {
            name.rpartition(".")[2]
            for statement in self.statements.since_mark()
            for name in statement.tables
        }
        self.baseline.tables = sorted(
            name
            for name, uses in (await self._table_uses()).items()
            if name in in_statements or uses > uses_before.get(name, 0)
        )

    async def _table_uses(self) -> dict[str, int]:
        async with self.admin() as admin:
            return {row["name"]: row["uses"] for row in await admin.fetch(TABLE_USES)}

    def _count_connections(self) -> int:
        text = self.stack.postgres.log.read_text(errors="replace")
        return text.count(f"connection authorized: user={APP} ")

    def _explain_failure(self, result: InvocationResult) -> str:
        hint = ""
        if "ImportModule" in (result.error or "") and self.inputs.python == sys.executable:
            hint = ". Name the interpreter that has its packages: PYTHON="
        elif result.error in ("Runtime.ExitError", "Sandbox.Timedout") and self.logs.last_line():
            hint = f". The last line of its log: {self.logs.last_line()}"
        return f"{self.inputs.handler} does not serve the event: {responses.describe(result)}{hint}"

    # --- Paths to Postgres ---------------------------------------------------------------------

    def direct(self, port: int | None = None) -> dict[str, str]:
        """Return the function's environment for Postgres, or for a proxy in front of it."""
        return self._environment(port or self.stack.postgres.port, None)

    def pooled(self, bouncer: PgBouncer, port: int | None = None) -> dict[str, str]:
        """Return the function's environment for a PgBouncer, or for a proxy in front of it."""
        return self._environment(port or bouncer.port, bouncer.ca)

    def _environment(self, port: int, ca: Path | None) -> dict[str, str]:
        host = self.stack.postgres.host
        password = self.stack.settings().password.get_secret_value()
        values = {
            "host": host,
            "port": str(port),
            "name": DATABASE,
            "user": APP,
            "password": password,
            "url": f"postgresql://{APP}:{quote(password)}@{host}:{port}/{DATABASE}",
            "ca": str(ca or ""),
            "sslmode": "verify-full" if ca else "disable",
        }
        # As on Lambda, no bytecode is written to the folder with the code.
        return {"PYTHONDONTWRITEBYTECODE": "1"} | self.inputs.environment(values)

    @contextlib.contextmanager
    def bouncer(self, **settings: str | int) -> Iterator[PgBouncer]:
        """Run a PgBouncer with this project's configuration, except that TLS is optional."""
        defaults: dict[str, str | int] = {
            "client_tls_sslmode": "prefer",
            "default_pool_size": POOL_SIZE,
            "reserve_pool_size": 0,
        }
        with self.stack.another_pgbouncer(settings=defaults | settings) as bouncer:
            yield bouncer

    @contextlib.asynccontextmanager
    async def admin(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        """Connect to the function's database as the superuser."""
        connection = await asyncpg.connect(**self.stack.postgres.admin, database=DATABASE)
        try:
            yield connection
        finally:
            connection.terminate()

    # --- The function --------------------------------------------------------------------------

    def fleet(self, environment: dict[str, str], **options: Any) -> Fleet:
        """Return a fleet of the function. `options`: those of `Fleet`."""
        return Fleet(
            environment,
            handler=self.inputs.handler,
            root=self.inputs.root,
            python=self.inputs.python,
            logs=self.logs.new_folder(),
            **options,
        )

    async def forked_fleet(self, environment: dict[str, str], **options: Any) -> Fleet:
        """Return a fleet that forks its sandboxes, which is faster, where this is possible."""
        return self.fleet(environment, fork_server=await _fork_server(self), **options)

    def event(self, index: int) -> Any:
        """Return an event, with a new key in place of `{key}`."""
        return replace_key(self.inputs.events[index % len(self.inputs.events)], self.new_key())

    def new_key(self) -> str:
        return f"examine-{os.getpid()}-{next(self._keys)}"

    def is_correct(self, index: int, result: InvocationResult) -> bool:
        """Return whether a response to the event is as under normal conditions."""
        return self.baseline.matches(index % len(self.inputs.events), result)

    async def warm_up(self, fleet: Fleet, count: int) -> None:
        """Start `count` sandboxes at the same time. Raises UnknownError for a wrong response."""
        results = await asyncio.gather(
            *(fleet.invoke(self.event(number), cold=True) for number in range(count))
        )
        for number, result in enumerate(results):
            if not self.is_correct(number, result):
                raise UnknownError(f"an event fails: {responses.describe(result)}")


def once_per_lab(function: Callable[[Lab], Awaitable[T]]) -> Callable[[Lab], Awaitable[T]]:
    """Cache the result of a measurement that several properties need."""

    @functools.wraps(function)
    async def cached(lab: Lab) -> T:
        if function not in lab.cache:
            lab.cache[function] = await function(lab)
        result: T = lab.cache[function]
        return result

    return cached


@once_per_lab
async def _fork_server(lab: Lab) -> ForkServer | None:
    if sys.platform != "linux":
        return None
    server = ForkServer(root=lab.inputs.root, python=lab.inputs.python)
    return await lab.cleanup.enter_async_context(server)


@once_per_lab
async def works_pooled(lab: Lab) -> bool:
    """Return whether a single sandbox responds correctly through transaction pooling."""
    repeats = lab.baseline.serves_repeatedly
    with lab.bouncer() as bouncer:
        async with lab.fleet(lab.pooled(bouncer)) as fleet:
            correct = [
                lab.is_correct(index, await fleet.invoke(lab.event(index)))
                for _ in range(3 if repeats else 1)
                for index in range(len(lab.inputs.events) if repeats else 1)
            ]
    return all(correct)


def replace_key(event: Any, key: str) -> Any:
    """Return the event with `{key}` replaced in all of its strings."""
    if isinstance(event, str):
        return event.replace("{key}", key)
    if isinstance(event, list):
        return [replace_key(item, key) for item in event]
    if isinstance(event, dict):
        return {name: replace_key(value, key) for name, value in event.items()}
    return event


async def becomes_true(condition: Callable[[], Awaitable[bool]], seconds: float) -> bool:
    """Return whether `condition` became true within `seconds`."""
    deadline = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > deadline:
            return False
        await asyncio.sleep(0.005)
    return True


async def has_no_backends(admin: Any, query: str = BACKENDS) -> bool:
    """Return whether `query` counts no backends of the function."""
    return not await admin.fetchval(query, APP)


async def wait_until_frozen(fleet: Fleet) -> None:
    """Wait until each sandbox is frozen or has ended. Raises UnknownError."""

    async def is_frozen() -> bool:
        return all(sandbox.frozen or not sandbox.alive for sandbox in fleet.sandboxes)

    if not await becomes_true(is_frozen, 10):
        raise UnknownError("the function does not ask for the next event, so it cannot be frozen")
