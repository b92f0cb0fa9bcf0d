"""The real parts that a function is examined on: Postgres, PgBouncers, sandboxes, proxies.

Owns what every measurement needs: the function's environment for a path to Postgres, fleets of it,
the answers it gives when nothing is wrong, and the tables that it uses.
"""

import asyncio
import contextlib
import itertools
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

import asyncpg

from infra.database.roles import APP, OWNER
from infra.local import LabError
from infra.local.examine import answers
from infra.local.examine.finding import UnknownError
from infra.local.examine.inputs import Inputs
from infra.local.examine.statements import StatementLog
from infra.local.fleet import Fleet, InvocationResult
from infra.local.fleet.fork_server import ForkServer
from infra.local.network import Filter
from infra.local.pgbouncer import PgBouncer
from infra.local.stack import DATABASE, Stack

MAX_CONNECTIONS = 40
#: Of a PgBouncer in front of the function, towards Postgres.
POOL_SIZE = 5
#: A log that grows beyond it is emptied: a function may print without end.
LOG_LIMIT_BYTES = 20 * 2**20

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
TABLES = """
SELECT relname::text AS name, coalesce(seq_scan, 0) + coalesce(idx_scan, 0) + n_tup_ins + n_tup_upd
  + n_tup_del AS uses
FROM pg_stat_user_tables WHERE schemaname = 'public'
"""
#: Of a role.
TERMINATE = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = $1"
BACKENDS = "SELECT count(*) FROM pg_stat_activity WHERE usename = $1"
IN_TRANSACTION = f"{BACKENDS} AND state LIKE 'idle in transaction%'"


class Lab:
    """`async with Lab(…) as lab:`. `no_filter`: why packets cannot be dropped here; None where they
    can."""

    def __init__(self, inputs: Inputs, stack: Stack, folder: Path, no_filter: str | None) -> None:
        self.inputs, self.stack, self.no_filter = inputs, stack, no_filter
        self.statements = StatementLog(stack.postgres.log)
        #: What each event is answered where nothing is wrong, and whether it is so each time.
        self.reference: list[Any] = []
        self.stable: list[bool] = []
        #: Those in `public` that the events read or write.
        self.tables: list[str] = []
        #: What `requests` measured.

        #: Whether a process serves a second event, and how many transactions it leaves open.
        self.repeats = True
        self.open_transactions = 0
        self.flooded = False
        self._folder = folder
        self._numbers = itertools.count(1)
        self._keys = itertools.count(1)
        self._undo = contextlib.AsyncExitStack()
        self._fork_server: ForkServer | None = None
        self._works_pooled: bool | None = None

    async def __aenter__(self) -> Self:
        try:
            await self._prepare()
        except BaseException:
            await self._undo.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._undo.aclose()

    async def _prepare(self) -> None:
        guard = asyncio.create_task(self._empty_large_logs())
        self._undo.callback(guard.cancel)
        async with self.admin() as admin:
            await admin.execute(PREPARATION)
            if self.inputs.schema is not None:
                await admin.execute(EMPTY_SCHEMA)
        if self.inputs.schema is not None:
            await self._load_schema(self.inputs.schema, self.inputs.schema_text)
        await self._learn()

    async def _load_schema(self, schema: Path, text: str) -> None:
        settings = self.stack.settings(user=OWNER)
        owner = await asyncpg.connect(
            host=settings.host,
            port=settings.port,
            user=OWNER,
            password=settings.password.get_secret_value(),
            database=DATABASE,
        )
        try:
            await owner.execute(text)
            await owner.execute(GRANTS)
        except asyncpg.PostgresError as error:
            raise LabError(f"SCHEMA {schema} failed: {error}") from None
        finally:
            await owner.close()

    async def _learn(self) -> None:
        """The answers where nothing is wrong. Raises LabError where it does not give any."""
        async with self.admin() as admin:
            before = {row["name"]: row["uses"] for row in await admin.fetch(TABLES)}
        self.statements.mark()
        connections = self._count_connections()
        async with self.fleet(self.direct()) as fleet:
            for index in range(len(self.inputs.events)):
                first = await fleet.invoke(self.event(index))
                if index == 0 and answers.failed(first):
                    raise LabError(self._refusal(first))
                second = await fleet.invoke(self.event(index))
                self.repeats &= not answers.failed(first) and not answers.failed(second)
                found = [answers.content(each.payload) for each in (first, second)]
                self.reference.append(found[0])
                self.stable.append(answers.failed(second) or answers.same(*found))
            await frozen(fleet)
            async with self.admin() as admin:
                self.open_transactions = await admin.fetchval(IN_TRANSACTION, APP)
        if self._count_connections() == connections:
            raise LabError(
                f"{self.inputs.handler} opened no connection to Postgres. Is it configured by ENV,"
                " and does EVENT need the database?"
            )
        named = {
            name.rpartition(".")[2]
            for statement in self.statements.since_mark()
            for name in statement.tables
        }
        async with self.admin() as admin:
            after = {row["name"]: row["uses"] for row in await admin.fetch(TABLES)}
        self.tables = sorted(
            name for name, uses in after.items() if name in named or uses > before.get(name, 0)
        )

    def _refusal(self, answer: InvocationResult) -> str:
        words, hint = answers.described(answer), ""
        if "ImportModule" in (answer.error or "") and self.inputs.python == sys.executable:
            hint = ". Name the interpreter that has its packages: PYTHON="
        elif answer.error in ("Runtime.ExitError", "Sandbox.Timedout") and self.last_line():
            hint = f". The last line of its log: {self.last_line()}"
        return f"{self.inputs.handler} does not serve the event: {words}{hint}"

    def last_line(self) -> str:
        """Of the newest sandbox's log."""
        logs = sorted(self._folder.rglob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").split("\n") if logs else []
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")

    def _count_connections(self) -> int:
        text = self.stack.postgres.log.read_text(errors="replace")
        return text.count(f"connection authorized: user={APP} ")

    # --- Paths to Postgres ---------------------------------------------------------------------

    def direct(self, port: int | None = None) -> dict[str, str]:
        """The function's environment straight to Postgres, or to a proxy before it."""
        postgres = self.stack.postgres
        return self._environment(postgres.host, port or postgres.port, None)

    def pooled(self, bouncer: PgBouncer, port: int | None = None) -> dict[str, str]:
        """The same through a PgBouncer, or to a proxy before it."""
        return self._environment(bouncer.host, port or bouncer.port, bouncer.ca)

    def _environment(self, host: str, port: int, ca: Path | None) -> dict[str, str]:
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
        # Lambda writes no bytecode under /var/task, and the folder is somebody's.
        return {"PYTHONDONTWRITEBYTECODE": "1"} | self.inputs.environment(values)

    @contextmanager
    def bouncer(self, **settings: str | int) -> Iterator[PgBouncer]:
        """A PgBouncer as this project configures it, but that TLS is the client's to choose."""
        ours: dict[str, str | int] = {
            "client_tls_sslmode": "prefer",
            "default_pool_size": POOL_SIZE,
            "reserve_pool_size": 0,
        }
        with self.stack.another_pgbouncer(settings=ours | settings) as bouncer:
            yield bouncer

    async def works_pooled(self) -> bool:
        """Whether one sandbox by itself is right through transaction pooling."""
        if self._works_pooled is None:
            with self.bouncer() as bouncer:
                async with self.fleet(self.pooled(bouncer)) as fleet:
                    found = [
                        self.is_right(index, await fleet.invoke(self.event(index)))
                        for _ in range(3 if self.repeats else 1)
                        for index in range(len(self.inputs.events) if self.repeats else 1)
                    ]
            self._works_pooled = all(found)
        return self._works_pooled

    # --- The function --------------------------------------------------------------------------

    def fleet(self, environment: dict[str, str], **options: Any) -> Fleet:
        """Sandboxes of the function. `options`: as `Fleet` has them."""
        logs = self._folder / str(next(self._numbers))
        logs.mkdir()
        return Fleet(
            environment,
            handler=self.inputs.handler,
            root=self.inputs.root,
            python=self.inputs.python,
            logs=logs,
            **options,
        )

    async def fork_server(self) -> ForkServer | None:
        """For many sandboxes; None where processes cannot be forked so."""
        if self._fork_server is None and sys.platform == "linux":
            server = ForkServer(root=self.inputs.root, python=self.inputs.python)
            self._fork_server = await self._undo.enter_async_context(server)
        return self._fork_server

    def packet_filter(self) -> Filter | None:
        return None if self.no_filter else Filter()

    def event(self, index: int) -> Any:
        """That event, with a new key where it has a place for one."""
        index %= len(self.inputs.events)
        return with_key(self.inputs.events[index], self.new_key())

    def new_key(self) -> str:
        return f"examine-{os.getpid()}-{next(self._keys)}"

    def is_right(self, index: int, answer: InvocationResult) -> bool:
        """Whether it says what the function says where nothing is wrong; of an event that is
        answered otherwise each time, whether it succeeded."""
        if answers.failed(answer):
            return False
        index %= len(self.inputs.events)
        expected, found = self.reference[index], answers.content(answer.payload)
        if self.stable[index]:
            return answers.same(expected, found)
        if isinstance(expected, dict) and "statusCode" in expected:
            return isinstance(found, dict) and found.get("statusCode") == expected["statusCode"]
        return True

    def new_log(self) -> Path:
        return self._folder / f"{next(self._numbers)}.log"

    # --- The servers ---------------------------------------------------------------------------

    @asynccontextmanager
    async def admin(self) -> AsyncIterator["asyncpg.Connection[Any]"]:
        connection = await asyncpg.connect(**self.stack.postgres.admin, database=DATABASE)
        try:
            yield connection
        finally:
            connection.terminate()

    async def _empty_large_logs(self) -> None:
        while True:
            await asyncio.sleep(0.5)
            for log in self._folder.rglob("*.log"):
                if log.stat().st_size > LOG_LIMIT_BYTES:
                    self.flooded = True
                    os.truncate(log, 0)


def with_key(event: Any, key: str) -> Any:
    if isinstance(event, str):
        return event.replace("{key}", key)
    if isinstance(event, list):
        return [with_key(each, key) for each in event]
    if isinstance(event, dict):
        return {name: with_key(each, key) for name, each in event.items()}
    return event


async def is_true_within(seconds: float, condition: Callable[[], Awaitable[bool]]) -> bool:
    """Whether it came true within `seconds`."""
    end = asyncio.get_running_loop().time() + seconds
    while not await condition():
        if asyncio.get_running_loop().time() > end:
            return False
        await asyncio.sleep(0.005)
    return True


async def frozen(fleet: Fleet) -> None:
    """Until every sandbox of it is, or has ended."""

    async def is_frozen() -> bool:
        return all(each.frozen or not each.alive for each in fleet.sandboxes)

    if not await is_true_within(10, is_frozen):
        raise UnknownError("it does not ask for the next event, so it cannot be frozen")


async def warm(lab: Lab, fleet: Fleet, count: int) -> None:
    """Start so many sandboxes at once, and see each answer rightly. Raises UnknownError."""
    found = await asyncio.gather(
        *(fleet.invoke(lab.event(number), cold=True) for number in range(count))
    )
    for number, answer in enumerate(found):
        if not lab.is_right(number, answer):
            raise UnknownError(f"it does not serve: {answers.described(answer)}")
