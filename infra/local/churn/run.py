"""One row of the churn: a stack and a fleet, a cold burst, warm traffic, and deployments.

Sandboxes end while they are idle.
"""

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from infra.local import compose
from infra.local.churn.monitor import Monitor
from infra.local.churn.plan import ConnectionPath, EndingScenario, Plan
from infra.local.churn.result import InvocationLog, Result
from infra.local.fleet import Fleet, Sandbox
from infra.local.fleet.fork_server import ForkServer
from infra.local.network import Filter
from infra.local.service import SAMPLE, Service
from infra.local.stack import RunningStack, Stack

#: The rate of warm traffic, and the number of callers.
INVOCATIONS_PER_S, CALLERS = 60, 8
WARM_PHASE_S = 3.0
#: How long to wait for connections of ended sandboxes, in seconds.
RELEASE_TIMEOUT_S = 25.0
#: Shortened from 300 and 240 seconds, so that a run sees the effect.
CLIENT_IDLE_TIMEOUT_S, MAX_IDLE_S = 20, 16
#: How long a close may take to be seen by the monitor, in seconds.
TOLERANCE_S = 1.0
#: The log messages of PgBouncer and Postgres for a client that disconnected without a close.
UNCLEAN_CLOSE = "/{app}@.*client unexpected eof|unexpected EOF on client connection"
#: How long Linux by default takes to close a connection to a silent peer.
KERNEL_KEEPALIVE_S = 7200 + 9 * 75


@contextlib.asynccontextmanager
async def _started_in_thread(stack: Stack) -> AsyncIterator[Stack]:
    """Start the stack for the block; starting and stopping do not block the loop."""
    starting = asyncio.create_task(asyncio.to_thread(stack.__enter__))
    try:
        yield await asyncio.shield(starting)
    finally:
        await asyncio.wait({starting})
        if not starting.exception():
            await asyncio.to_thread(stack.__exit__, None, None, None)


class Run:
    """A row: `async with Run(…) as run: await run.churn()`, then `await run.release()`.

    The stack and frozen sandboxes exist until the end of the block.
    """

    def __init__(
        self,
        path: ConnectionPath,
        row: EndingScenario,
        plan: Plan,
        report_progress: Callable[[str], None],
        service: Service = SAMPLE,
    ) -> None:
        self._service = service
        self.path, self.row, self.plan, self._report_progress = path, row, plan, report_progress
        self.result = Result(path.value, row.value)
        self._invocations = InvocationLog()

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
        self._report_progress("Postgres and PgBouncer")
        self.stack = await self._find_stack()
        console = self._undo.enter_context(self.stack.pgbouncer.console())
        self._undo.callback(console.execute, "RELOAD")
        console.execute(f"SET client_idle_timeout = {CLIENT_IDLE_TIMEOUT_S}")
        if self.path is ConnectionPath.DIRECT:
            self._lift_connection_limit()
        self.monitor = self._undo.enter_context(Monitor(self.stack, self.path))
        self._undo.callback(self.monitor.terminate_backends)
        self._logs = Path(self._undo.enter_context(tempfile.TemporaryDirectory()))
        self._fleet = await self._undo.enter_async_context(await self._new_fleet())

    async def _find_stack(self) -> RunningStack:
        if compose.is_inside_compose():
            return await compose.Stack.find()
        own = Stack(max_connections=self.plan.max_connections, service=self._service)
        return await self._undo.enter_async_context(_started_in_thread(own))

    async def _new_fleet(self) -> Fleet:
        fork_server = None
        if self.plan.uses_fork_server:
            fork_server = await self._undo.enter_async_context(
                ForkServer(root=self._service.root, python=self._service.python)
            )
        environment = self.stack.environment(direct=self.path is ConnectionPath.DIRECT)
        return self._service.fleet(
            environment | {"DB_MAX_IDLE": str(MAX_IDLE_S)},
            concurrency=2 * self.plan.sandboxes + CALLERS,
            extensions=self.row is not EndingScenario.NO_EXTENSION,
            logs=self._logs,
            packet_filter=Filter() if self.row.needs_filter else None,
            fork_server=fork_server,
        )

    def _lift_connection_limit(self) -> None:
        """Remove the role's connection limit, which most deployments do not have."""
        admin = self._undo.enter_context(self.stack.postgres.administrator())
        app = self._service.app
        row = admin.execute(
            "SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [app]
        ).fetchone()
        assert row is not None  # noqa: S101  # created by bootstrap
        self._undo.callback(admin.execute, f"ALTER ROLE {app} CONNECTION LIMIT {row[0]}")
        admin.execute(f"ALTER ROLE {app} CONNECTION LIMIT -1")

    async def churn(self) -> None:
        """Run the burst, the traffic and the deployments, and fill in `result`."""
        self._report_progress(f"a cold burst of {self.plan.sandboxes}")
        await asyncio.gather(*(self._invoke(cold=True) for _ in range(self.plan.sandboxes)))
        async with self._traffic():
            self._report_progress(f"warm traffic, {INVOCATIONS_PER_S} a second")
            before = len(self._invocations.answers)
            await asyncio.sleep(WARM_PHASE_S)
            rate = (len(self._invocations.answers) - before) / WARM_PHASE_S
            self.result.warm_invocations_per_s = round(rate, 1)
            for number in range(1, self.plan.deploys + 1):
                await self._deploy(number)
            await asyncio.sleep(0.5)
        self._report_progress("ending the last sandboxes")
        self.result.held_backends, self.result.held_clients = self.monitor.held_by_ended
        for sandbox in list(self._fleet.sandboxes):
            await self._fleet.retire(sandbox)
        self._invocations.write(self.result, self._logs)

    async def _deploy(self, number: int) -> None:
        """Replace all sandboxes in batches; the new ones of a batch start first."""
        old = list(self._fleet.sandboxes)
        replaced = 0
        while batch := old[replaced : replaced + self.plan.batch_size]:
            self._report_progress(f"deploy {number}: {replaced} of {len(old)} replaced")
            await asyncio.gather(*(self._invoke(cold=True) for _ in batch))
            await asyncio.gather(*map(self._end, batch))
            replaced += len(batch)

    async def _end(self, sandbox: Sandbox) -> None:
        had = sandbox.connections()
        if not await self._fleet.retire(sandbox, self.row.ending) and sandbox.serving:
            self._invocations.interrupted.add(sandbox.serving)
        self.monitor.record_ending([client for client, _ in had])

    async def _invoke(self, *, cold: bool = False) -> None:
        self._invocations.record(await self._fleet.invoke(self._service.event, cold=cold))

    @contextlib.asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        """Run callers who send INVOCATIONS_PER_S during the block and wait for responses."""
        stopped = asyncio.Event()

        async def call(number: int) -> None:
            loop = asyncio.get_running_loop()
            due = loop.time() + number / INVOCATIONS_PER_S
            while not stopped.is_set():
                await asyncio.sleep(due - loop.time())
                await self._invoke()
                due = max(due + CALLERS / INVOCATIONS_PER_S, loop.time())

        async with asyncio.TaskGroup() as callers:
            for number in range(CALLERS):
                callers.create_task(call(number))
            yield
            stopped.set()

    async def release(self) -> None:
        """Wait for the connections of ended sandboxes to close, and fill in `result`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RELEASE_TIMEOUT_S):
                while self.monitor.release_s is None:  # noqa: ASYNC110  # polled, set on a thread
                    await asyncio.sleep(0.1)
        result, seconds = self.result, self.monitor.release_s
        result.release_s = None if seconds is None else round(seconds, 2)
        result.release_limit_s = self._release_limit()
        result.samples = self.monitor.samples
        result.peak_backends = max(backends for _, backends, _ in result.samples)
        result.peak_clients = max(clients for _, _, clients in result.samples)
        if isinstance(self.stack, Stack):
            server = (
                self.stack.pgbouncer
                if self.path is ConnectionPath.PGBOUNCER
                else self.stack.postgres
            )
            output = server.log_since_start().splitlines()
            unclean = re.compile(UNCLEAN_CLOSE.format(app=self._service.app))
            result.unclean_closes = sum(bool(unclean.search(line)) for line in output)

    def _release_limit(self) -> float:
        """Return the upper limit of `release_s` by the settings."""
        if self.row in (EndingScenario.GRACEFUL, EndingScenario.KILL):
            return TOLERANCE_S
        if self.path is ConnectionPath.DIRECT:
            return KERNEL_KEEPALIVE_S + TOLERANCE_S
        config = {row["key"]: row["value"] for row in self.stack.pgbouncer.show("CONFIG")}
        probed = float(config["tcp_keepidle"]) + float(config["tcp_keepintvl"]) * float(
            config["tcp_keepcnt"]
        )
        return min(float(config["client_idle_timeout"]), probed) + TOLERANCE_S
