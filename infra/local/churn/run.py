"""One row of the churn: a stack and a fleet, a burst of cold starts, warm traffic, deployments."""

import asyncio
import contextlib
import re
import tempfile
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from infra.local import compose
from infra.local.churn.monitor import Monitor
from infra.local.churn.plan import ConnectionPath, EndingScenario, Plan, release_limit_s
from infra.local.churn.result import Result
from infra.local.fleet import Fleet, InvocationResult, Sandbox
from infra.local.fleet.fork_server import ForkServer
from infra.local.network import Filter
from infra.local.service import SAMPLE, Service
from infra.local.stack import Stack

#: The rate of warm traffic, and the number of callers.
INVOCATIONS_PER_S, CALLERS = 60, 8
WARM_PHASE_S = 3.0
#: How long to wait for connections of ended sandboxes, in seconds.
RELEASE_TIMEOUT_S = 25.0
#: Shortened from 300 and 240 seconds, so that they take effect during a run.
CLIENT_IDLE_TIMEOUT_S, MAX_IDLE_S = 20, 16
#: The log messages of PgBouncer and Postgres for a client that disconnected without a close.
UNCLEAN_CLOSE = "/{app}@.*client unexpected eof|unexpected EOF on client connection"


@contextlib.asynccontextmanager
async def _started_in_thread(stack: Stack) -> AsyncIterator[Stack]:
    """Run the stack for the block without blocking the event loop."""
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
        ending: EndingScenario,
        plan: Plan,
        report_progress: Callable[[str], None],
        service: Service = SAMPLE,
    ) -> None:
        self._path, self._ending, self._plan = path, ending, plan
        self._report_progress = report_progress
        self._service = service
        self.result = Result(path.value, ending.value)
        self._invocations: list[InvocationResult] = []
        #: Ids of requests whose sandbox was ended while it served them.
        self._interrupted: set[str] = set()
        self._cleanup = contextlib.AsyncExitStack()

    async def __aenter__(self) -> "Run":
        async with self._cleanup:
            await self._start()
            self._cleanup = self._cleanup.pop_all()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._cleanup.aclose()

    async def _start(self) -> None:
        self._report_progress("Postgres and PgBouncer")
        self._stack = await self._find_stack()
        console = self._cleanup.enter_context(self._stack.pgbouncer.console())
        self._cleanup.callback(console.execute, "RELOAD")
        console.execute(f"SET client_idle_timeout = {CLIENT_IDLE_TIMEOUT_S}")
        if self._path is ConnectionPath.DIRECT:
            self._remove_connection_limit()
        self.monitor = self._cleanup.enter_context(Monitor(self._stack, self._path))
        self._cleanup.callback(self.monitor.terminate_backends)
        self._logs = Path(self._cleanup.enter_context(tempfile.TemporaryDirectory()))
        fork_server = None
        if self._plan.uses_fork_server:
            fork_server = await self._cleanup.enter_async_context(
                ForkServer(root=self._service.root, python=self._service.python)
            )
        environment = self._stack.environment(direct=self._path is ConnectionPath.DIRECT)
        fleet = self._service.fleet(
            environment | {"DB_MAX_IDLE": str(MAX_IDLE_S)},
            concurrency=2 * self._plan.sandboxes + CALLERS,
            extensions=self._ending is not EndingScenario.NO_EXTENSION,
            logs=self._logs,
            packet_filter=Filter() if self._ending.needs_filter else None,
            fork_server=fork_server,
        )
        self._fleet: Fleet = await self._cleanup.enter_async_context(fleet)

    async def _find_stack(self) -> compose.RunningStack:
        if compose.is_inside_compose():
            return await compose.Stack.find()
        stack = Stack(max_connections=self._plan.max_connections, service=self._service)
        return await self._cleanup.enter_async_context(_started_in_thread(stack))

    def _remove_connection_limit(self) -> None:
        """Remove the role's connection limit, because most deployments have none."""
        admin = self._cleanup.enter_context(self._stack.postgres.administrator())
        app = self._service.app
        [[limit]] = admin.execute(
            "SELECT rolconnlimit FROM pg_roles WHERE rolname = %s", [app]
        ).fetchall()
        self._cleanup.callback(admin.execute, f"ALTER ROLE {app} CONNECTION LIMIT {limit}")
        admin.execute(f"ALTER ROLE {app} CONNECTION LIMIT -1")

    async def churn(self) -> None:
        """Run the burst, the traffic and the deployments, and fill in `result`."""
        self._report_progress(f"a cold burst of {self._plan.sandboxes}")
        await asyncio.gather(*(self._invoke(cold=True) for _ in range(self._plan.sandboxes)))
        async with self._traffic():
            self._report_progress(f"warm traffic, {INVOCATIONS_PER_S} a second")
            before = len(self._invocations)
            await asyncio.sleep(WARM_PHASE_S)
            rate = (len(self._invocations) - before) / WARM_PHASE_S
            self.result.warm_invocations_per_s = round(rate, 1)
            for number in range(1, self._plan.deploys + 1):
                await self._deploy(number)
            await asyncio.sleep(0.5)
        self._report_progress("ending the last sandboxes")
        self.result.held_backends, self.result.held_clients = self.monitor.held_by_ended
        for sandbox in list(self._fleet.sandboxes):
            await self._fleet.retire(sandbox)
        self.result.add_invocations(self._invocations, self._interrupted, self._logs)

    async def _deploy(self, number: int) -> None:
        """Replace all sandboxes in batches; the new sandboxes of a batch start first."""
        old = list(self._fleet.sandboxes)
        for replaced in range(0, len(old), self._plan.batch_size):
            self._report_progress(f"deploy {number}: {replaced} of {len(old)} replaced")
            batch = old[replaced : replaced + self._plan.batch_size]
            await asyncio.gather(*(self._invoke(cold=True) for _ in batch))
            await asyncio.gather(*map(self._end, batch))

    async def _end(self, sandbox: Sandbox) -> None:
        ports = [client_port for client_port, _ in sandbox.connections()]
        was_idle = await self._fleet.retire(sandbox, self._ending.ending)
        if not was_idle and sandbox.serving:
            self._interrupted.add(sandbox.serving)
        self.monitor.record_ending(ports)

    async def _invoke(self, *, cold: bool = False) -> None:
        self._invocations.append(await self._fleet.invoke(self._service.event, cold=cold))

    @contextlib.asynccontextmanager
    async def _traffic(self) -> AsyncIterator[None]:
        """Send INVOCATIONS_PER_S during the block; each caller waits for its response."""
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
        settings = {row["key"]: row["value"] for row in self._stack.pgbouncer.show("CONFIG")}
        result.release_limit_s = release_limit_s(self._path, self._ending, settings)
        result.samples = self.monitor.samples
        result.peak_backends = max(backends for _, backends, _ in result.samples)
        result.peak_clients = max(clients for _, _, clients in result.samples)
        if isinstance(self._stack, Stack):
            pooled = self._path is ConnectionPath.PGBOUNCER
            server = self._stack.pgbouncer if pooled else self._stack.postgres
            pattern = UNCLEAN_CLOSE.format(app=self._service.app)
            result.unclean_closes = len(re.findall(pattern, server.log_since_start()))
