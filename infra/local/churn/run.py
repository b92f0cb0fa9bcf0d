"""One row: a stack and a fleet of its own, a cold burst, warm traffic, deploys, and what is left.

Owns the order of events and the counting of invocations. Endings hit idle sandboxes.
"""

import asyncio
import contextlib
import itertools
import json
import re
import statistics
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path as Folder

from infra.database.roles import APP
from infra.local import compose
from infra.local.churn.plan import Path, Plan, Row
from infra.local.churn.watch import Watch
from infra.local.fleet import Answer, Fleet, Sandbox
from infra.local.fleet.front_door import api_gateway_event
from infra.local.fleet.nursery import Nursery
from infra.local.network import Filter
from infra.local.stack import Stack

#: Invocations per second while nothing else happens, and how many callers there are.
RATE, CALLERS = 60, 8
WARM_SECONDS = 3.0
#: How long is waited for what ended sandboxes hold, in seconds.
HORIZON = 25.0
#: Time-lapse: the limits of an idle client (300 and 240 seconds), so that a run sees its end.
CLIENT_IDLE_TIMEOUT, MAX_IDLE = 20, 16
#: What a goodbye may take to be seen from outside, in seconds.
SLACK = 1.0
#: PgBouncer's words and Postgres' for a client that left without a goodbye.
UNCLEAN = re.compile(f"/{APP}@.*client unexpected eof|unexpected EOF on client connection")
#: Linux' own patience with a silent peer, where nobody sets another.
KERNEL_KEEPALIVE = 7200 + 9 * 75


@dataclass
class Result:
    """One row of the report; fields as in `churn.json`, schema 1."""

    path: str
    ending: str
    invocations: int = 0
    ok: int = 0
    failed: int = 0
    in_flight_at_ending: int = 0
    failures: dict[str, int] = field(default_factory=dict)
    peak_backends: int = 0
    peak_clients: int = 0
    backends_after: int = 0
    clients_after: int = 0
    #: None where the servers' logs cannot be read (Compose).
    unclean_closes: int | None = None
    release_seconds: float | None = None
    release_bound_seconds: float = 0
    cold_ms: dict[str, float] = field(default_factory=dict)
    warm_ms: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    #: Invocations a second in the warm phase.
    warm_rate: float = 0

    @property
    def causes(self) -> str:
        return ", ".join(f"{count} × {cause}" for cause, count in self.failures.items())


class Ledger:
    """Every invocation, by how it ended."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        #: Requests that ran in a sandbox which was ended under them.
        self.interrupted: set[str] = set()

    def note(self, answer: Answer) -> None:
        self.answers.append(answer)

    @staticmethod
    def is_ok(answer: Answer) -> bool:
        return answer.error is None and answer.payload.get("statusCode") == 200

    def write(self, result: Result, logs: Folder) -> None:
        causes = _causes(logs)
        counted = [each for each in self.answers if each.request_id not in self.interrupted]
        good = [answer for answer in counted if self.is_ok(answer)]
        bad = [answer for answer in counted if not self.is_ok(answer)]
        result.invocations, result.ok, result.failed = len(counted), len(good), len(bad)
        result.in_flight_at_ending = len(self.interrupted)
        result.failures = dict(
            Counter(answer.error or causes.get(answer.request_id, "?") for answer in bad)
        )
        result.cold_ms = _percentiles([answer.ms for answer in good if answer.cold])
        result.warm_ms = _percentiles([answer.ms for answer in good if not answer.cold])


def _causes(logs: Folder) -> dict[str, str]:
    """Request → SQLSTATE or words, of those that failed, by the handler's own log."""
    causes = {}
    for log in logs.glob("*.log"):
        for text in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "fault" in line:
                    causes[line["request_id"]] = line.get("sqlstate") or line["fault"]
    return causes


def _percentiles(ms: list[float]) -> dict[str, float]:
    if len(ms) < 2:
        return {"p50": round(ms[0], 1) if ms else 0.0, "p95": round(ms[0], 1) if ms else 0.0}
    cuts = statistics.quantiles(ms, n=20, method="inclusive")
    return {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}


@contextlib.asynccontextmanager
async def _in_a_thread(stack: Stack) -> AsyncIterator[Stack]:
    """The stack for the time of the block; the loop goes on while it starts and stops."""
    starting = asyncio.create_task(asyncio.to_thread(stack.__enter__))
    try:
        yield await asyncio.shield(starting)
    finally:
        await asyncio.wait({starting})
        if not starting.exception():
            await asyncio.to_thread(stack.__exit__, None, None, None)


class Run:
    """`async with Run(…) as run: await run.churn()`, then `await run.release()` whenever there is
    time; the stack and what was left frozen stay until the block's end. `say`: gets what happens.
    """

    def __init__(self, path: Path, row: Row, plan: Plan, say: Callable[[str], None]) -> None:
        self.path, self.row, self.plan, self._say = path, row, plan, say
        self.result = Result(path.value, row.value)
        self._ledger = Ledger()
        self._numbers = itertools.count()

    async def __aenter__(self) -> "Run":
        self._undo = contextlib.AsyncExitStack()
        try:
            await self._start()
        except BaseException:
            await self._undo.aclose()
            raise
        return self

    async def __aexit__(self, *error: object) -> None:
        await self._undo.aclose()

    async def _start(self) -> None:
        self._say("Postgres and PgBouncer")
        if compose.is_here():
            self.stack: Stack | compose.Stack = await compose.Stack.find()
        else:
            own = Stack(max_connections=self.plan.max_connections)
            self.stack = await self._undo.enter_async_context(_in_a_thread(own))
        console = self._undo.enter_context(self.stack.pgbouncer.console())
        self._undo.callback(console.execute, "RELOAD")
        console.execute(f"SET client_idle_timeout = {CLIENT_IDLE_TIMEOUT}")
        self.watch = self._undo.enter_context(Watch(self.stack, self.path))
        self._undo.callback(self.watch.clear)
        self._logs = Folder(self._undo.enter_context(tempfile.TemporaryDirectory()))
        nursery = None
        if self.plan.forked:
            nursery = await self._undo.enter_async_context(Nursery())
        environment = self.stack.environment(direct=self.path is Path.DIRECT)
        self._fleet = Fleet(
            environment | {"DB_MAX_IDLE": str(MAX_IDLE)},
            concurrency=2 * self.plan.sandboxes + CALLERS,
            extensions=self.row is not Row.FORGOT,
            logs=self._logs,
            packet_filter=Filter() if self.row.needs_filter else None,
            nursery=nursery,
        )
        await self._undo.enter_async_context(self._fleet)

    async def churn(self) -> None:
        """The burst, the traffic and the deploys. What came of the invocations is in `result`."""
        self._say(f"a cold burst of {self.plan.sandboxes}")
        await asyncio.gather(*(self._invoke(cold=True) for _ in range(self.plan.sandboxes)))
        async with self._traffic():
            self._say(f"warm traffic, {RATE} a second")
            before = len(self._ledger.answers)
            await asyncio.sleep(WARM_SECONDS)
            rate = (len(self._ledger.answers) - before) / WARM_SECONDS
            self.result.warm_rate = round(rate, 1)
            for number in range(1, self.plan.deploys + 1):
                await self._deploy(number)
            await asyncio.sleep(0.5)
        self._say("the last of the old sandboxes")
        self.result.backends_after, self.result.clients_after = self.watch.held
        for sandbox in list(self._fleet.sandboxes):
            await self._fleet.retire(sandbox)
        self._ledger.write(self.result, self._logs)

    async def _deploy(self, number: int) -> None:
        """Replace every sandbox by a new one, a batch at a time: the new ones come first."""
        old = list(self._fleet.sandboxes)
        replaced = 0
        while batch := old[replaced : replaced + self.plan.batch]:
            self._say(f"deploy {number}: {replaced} of {len(old)} replaced")
            await asyncio.gather(*(self._invoke(cold=True) for _ in batch))
            await asyncio.gather(*map(self._end, batch))
            replaced += len(batch)

    async def _end(self, sandbox: Sandbox) -> None:
        had = sandbox.connections()
        if not await self._fleet.retire(sandbox, self.row.ending) and sandbox.serving:
            self._ledger.interrupted.add(sandbox.serving)
        self.watch.ended([client for client, _ in had])

    async def _invoke(self, *, cold: bool = False) -> None:
        event = api_gateway_event("GET", f"/orders/{next(self._numbers) % 5 + 1}")
        self._ledger.note(await self._fleet.invoke(event, cold=cold))

    @contextlib.asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        """Callers who keep up RATE for the time of the block, and wait for their answers."""
        stopped = asyncio.Event()

        async def call(number: int) -> None:
            loop = asyncio.get_running_loop()
            due = loop.time() + number / RATE
            while not stopped.is_set():
                await asyncio.sleep(due - loop.time())
                await self._invoke()
                due = max(due + CALLERS / RATE, loop.time())

        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(call(number))
            yield
            stopped.set()

    async def release(self) -> None:
        """Wait until nothing of the ended sandboxes is left, or HORIZON is over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HORIZON):
                while self.watch.release_seconds is None:  # noqa: ASYNC110  # it rings no bell
                    await asyncio.sleep(0.1)
        result, seconds = self.result, self.watch.release_seconds
        result.release_seconds = None if seconds is None else round(seconds, 2)
        result.release_bound_seconds = self._bound()
        result.samples = self.watch.samples
        result.peak_backends = max(backends for _, backends, _ in result.samples)
        result.peak_clients = max(clients for _, _, clients in result.samples)
        if isinstance(self.stack, Stack):
            server = self.stack.pgbouncer if self.path is Path.PGBOUNCER else self.stack.postgres
            said = server.said().splitlines()
            result.unclean_closes = sum(bool(UNCLEAN.search(line)) for line in said)

    def _bound(self) -> float:
        """What the settings promise for `release_seconds`."""
        if self.row in (Row.GRACEFUL, Row.KILL):
            return SLACK
        if self.path is Path.DIRECT:
            return KERNEL_KEEPALIVE + SLACK
        config = {row["key"]: row["value"] for row in self.stack.pgbouncer.show("CONFIG")}
        probed = float(config["tcp_keepidle"]) + float(config["tcp_keepintvl"]) * float(
            config["tcp_keepcnt"]
        )
        return min(float(config["client_idle_timeout"]), probed) + SLACK
