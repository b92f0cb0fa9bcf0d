"""One execution environment: a process with the real runtime interface client, and its end.

Owns the process. It shares with Lambda's what a handler can notice: the API, the environment, the
deadline, when it is frozen, who is told of the end and how long before.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

import psutil

from infra.local import ROOT, LabError
from infra.local.fleet.nursery import Forked, Nursery
from infra.local.fleet.runtime_api import Answer, Invocation, RuntimeApi
from infra.local.network import Filter, Ports

#: Until a sandbox must be ready, in seconds of its own CPU time: on Lambda none shares it, here all
#: share a machine's. And on the clock, for one that waits for nothing.
INIT_CPU_SECONDS = 10.0
INIT_SECONDS = 60.0


#: A frozen sandbox does not notice that the laboratory was killed: the kernel ends it (Linux).
_SETPRIV = shutil.which("setpriv")
DIES_WITH_US = (_SETPRIV, "--pdeathsig", "KILL") if _SETPRIV else ()

Process = asyncio.subprocess.Process | Forked


class Ending(StrEnum):
    """How a sandbox ceases to be."""

    #: Lambda's shutdown phase: SIGTERM and half a second, if it registered an extension.
    GRACEFUL = "graceful"
    #: SIGKILL; its kernel says goodbye in its stead.
    KILL = "kill"
    #: It is never thawed again. Its process stays, for whoever counts what it holds.
    FREEZE = "freeze"
    #: Cut off, then SIGKILL: no FIN ever arrives. As a micro-VM that is taken away.
    VANISH = "vanish"


#: From SIGTERM to SIGKILL where an internal extension is registered; without one there is no
#: SIGTERM at all. "Shutdown phase", Understanding the Lambda execution environment lifecycle.
SHUTDOWN_SECONDS = 0.5


class Sandbox:
    """Made by `start`. Serves one event at a time, until `end`.

    Between two events it is frozen, as soon as the runtime and all extensions are parked in `next`:
    stopped, and with a `packet_filter` cut off as well, as a paused micro-VM is. Without one its
    kernel goes on acknowledging and takes a FIN in its stead: a weaker freeze, of the process only.
    """

    def __init__(
        self,
        api: RuntimeApi,
        process: Process,
        packet_filter: Filter | None,
    ) -> None:
        self._api = api
        self._process = process
        self._filter = packet_filter
        self._silent: list[Ports] = []
        self._sockets: set[str] = set()
        self._connections: list[Ports] = []
        self._freezing: asyncio.Task[None] | None = None
        #: Whether it is frozen now.
        self.frozen = False
        #: The request that it serves, or served last.
        self.serving: str | None = None
        self._exited = asyncio.create_task(process.wait())
        self._ending: asyncio.Task[None] | None = None
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        handler: str,
        environment: dict[str, str],
        *,
        extensions: bool = True,
        log: Path | None = None,
        root: Path = ROOT,
        packet_filter: Filter | None = None,
        nursery: Nursery | None = None,
    ) -> "Sandbox":
        """Begin the init phase of a new process. `extensions`: whether it may register any. `log`:
        what it prints goes there, or here. `root`: the folder with the code. `nursery`: forks
        it.

        `environment` may say that this is a Managed Instance (AWS_LAMBDA_MAX_CONCURRENCY processes)
        or SnapStart (AWS_LAMBDA_INITIALIZATION_TYPE): then it is to be restored from a snapshot."""
        snap = environment.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
        client = "infra.local.fleet.snapshot" if snap else "awslambdaric"
        processes = 0 if snap else int(environment.get("AWS_LAMBDA_MAX_CONCURRENCY", 1))
        api = RuntimeApi(extensions, processes)
        await api.start()
        try:
            given = _environment(handler, api.address, root) | environment
            if nursery is not None:
                process: Process = await nursery.fork(handler, given, log)
            else:
                with _output(log) as output:
                    process = await asyncio.create_subprocess_exec(
                        *(*DIES_WITH_US, sys.executable, "-m", client, handler),
                        cwd=root,
                        env=given,
                        stdin=asyncio.subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
        except BaseException:
            await api.close()
            raise
        return cls(api, process, packet_filter)

    @property
    def alive(self) -> bool:
        return not self._exited.done()

    @property
    def exit_status(self) -> int | None:
        """0 if it left by itself, negative if a signal ended it, None while it lives."""
        return self._exited.result() if self._exited.done() else None

    async def invoke(self, event: Any, limit: float) -> Answer:
        """Hand over one event, after the init phase if need be, and wait for what comes of it.
        Failures are answers, as on Lambda; after one of the process itself it is not `alive`.
        `limit`: the function's time-out, in seconds."""
        begun = time.monotonic()
        await self._thaw()
        invocation = Invocation(json.dumps(event).encode(), limit)
        self.serving = invocation.request_id
        failed = await self._until(self._ready(), INIT_SECONDS)
        if failed is None:
            self._api.hand_over(invocation)
            failed = await self._until(invocation.answered, limit)
        payload, error = failed or invocation.answered.result()
        ms = (time.monotonic() - begun) * 1000
        if self.alive and self._ending is None:  # one that is shutting down is not frozen
            self._freezing = asyncio.create_task(self._freeze())
        return Answer(invocation.request_id, payload, error, self.pid, ms)

    async def invoke_all(self, events: list[Any], limit: float) -> list[Any]:
        """What the processes of this sandbox say to `events`, each of which another one serves."""
        await self._ready()
        invocations = [Invocation(json.dumps(event).encode(), limit) for event in events]
        for invocation in invocations:
            self._api.hand_over(invocation)
        async with asyncio.timeout(limit):
            return [(await invocation.answered)[0] for invocation in invocations]

    async def restore(self, copies: int) -> None:
        """SnapStart: once the snapshot is taken, restore it so often."""
        async with asyncio.timeout(INIT_SECONDS):
            await self._api.snapshot.wait()
            for _ in range(copies):
                self._api.restore()
            await self._api.parked.wait()

    async def settled(self) -> bool:
        """Once its last answer is behind it: whether it lives."""
        parked = asyncio.ensure_future(self._api.parked.wait())
        await asyncio.wait({parked, self._exited}, return_when=asyncio.FIRST_COMPLETED)
        parked.cancel()
        return self.alive

    async def _ready(self) -> None:
        """Once the runtime and all extensions are parked. Cancelled, with the init phase over, when
        that has cost too much."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._api.parked.wait(), 1)
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                used = psutil.Process(self.pid).cpu_times()
                if used.user + used.system > INIT_CPU_SECONDS:
                    raise TimeoutError

    async def _freeze(self) -> None:
        await self._api.parked.wait()
        self._signal(signal.SIGSTOP)
        self.frozen = True
        if self._filter is not None:
            self._silent = self.connections()
            self._filter.silence(self._silent)

    def connections(self) -> list[Ports]:
        """Those that it has, but to the Runtime API, which is part of a sandbox. Listing all
        connections takes milliseconds, so it is done only when its sockets are others."""
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            links = [link.readlink().name for link in Path(f"/proc/{self.pid}/fd").iterdir()]
            sockets = {link for link in links if link.startswith("socket:")}
            if sockets != self._sockets:
                self._connections = [
                    (each.laddr.port, each.raddr.port)
                    for each in psutil.Process(self.pid).net_connections("tcp")
                    if each.raddr and each.raddr.port != self._api.port
                ]
                self._sockets = sockets
            return self._connections
        return []

    async def _thaw(self) -> None:
        if self._freezing is not None:
            self._freezing.cancel()
            await asyncio.wait({self._freezing})
            self._freezing = None
        if self.frozen:
            self._restore()
            self._signal(signal.SIGCONT)
            self.frozen = False

    def _restore(self) -> None:
        if self._filter is not None:
            self._filter.restore(self._silent)
        self._silent = []

    async def _until(
        self, wanted: Awaitable[Any], seconds: float
    ) -> tuple[dict[str, Any], str] | None:
        """None once `wanted` has come; Lambda's error if the process fails or time is up first."""
        waiting = asyncio.ensure_future(wanted)
        first = {waiting, self._exited, self._api.init_error}
        await asyncio.wait(first, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and not waiting.exception():
            return None
        waiting.cancel()
        if self._api.init_error.done():
            reported = self._api.init_error.result()
            error, message = reported.get("errorType", "?"), reported.get("errorMessage", "?")
        elif self._exited.done():
            status = self._exited.result()
            how = f"signal: {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            error, message = "Runtime.ExitError", f"Runtime exited with error: exit {how}"
        else:
            error, message = "Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds"
        await self.end()
        return {"errorType": error, "errorMessage": message}, error

    async def end(self, how: Ending = Ending.GRACEFUL) -> None:
        """End it; but for FREEZE, nothing of it is left. Safe to call again, and after FREEZE."""
        if how is Ending.FREEZE:
            if self._freezing is not None:
                await self._freezing
            return
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(how))
        await asyncio.shield(self._ending)

    async def _end(self, how: Ending) -> None:
        if how is Ending.VANISH:
            if self._filter is None:
                raise LabError("a sandbox vanishes only where packets can be dropped")
            self._filter.silence(set(self.connections()) - set(self._silent))
        elif how is Ending.GRACEFUL:
            await self._thaw()
            if self._api.extensions and self.alive:
                self._signal(signal.SIGTERM)
                await asyncio.wait({self._exited}, timeout=SHUTDOWN_SECONDS)
        else:
            self._restore()
        if self._freezing is not None:
            self._freezing.cancel()
        self._signal(signal.SIGKILL)
        await self._exited
        await self._api.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _environment(handler: str, runtime_api: str, root: Path) -> dict[str, str]:
    """What Lambda sets, as far as a handler or the runtime client looks at it. Source: "Defined
    runtime environment variables", AWS Lambda Developer Guide."""
    return {
        "PATH": os.defpath,
        "LANG": "en_US.UTF-8",
        "TZ": ":UTC",
        "LAMBDA_TASK_ROOT": str(root),
        "_HANDLER": handler,
        "AWS_REGION": "eu-central-1",
        "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_LAMBDA_FUNCTION_NAME": "warm-engine",
        "AWS_LAMBDA_FUNCTION_VERSION": "$LATEST",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "512",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_RUNTIME_API": runtime_api,
    }


@contextlib.contextmanager
def _output(log: Path | None) -> Iterator[IO[bytes] | None]:
    if log is None:
        yield None
    else:
        with log.open("ab") as file:
            yield file
