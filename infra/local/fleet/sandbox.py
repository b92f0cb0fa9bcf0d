"""One execution environment: a process with the real runtime interface client, and its life cycle.

A handler sees the same API, environment variables, deadline, freeze and shutdown as on Lambda.
"""

import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Awaitable
from enum import StrEnum
from pathlib import Path
from typing import Any

import psutil

from infra.local import ROOT
from infra.local.fleet.connections import Connections
from infra.local.fleet.fork_server import ForkedProcess, ForkServer
from infra.local.fleet.interpreter import Mode, client_command
from infra.local.fleet.runtime_api import Invocation, InvocationResult, RuntimeApi
from infra.local.network import Filter, Ports

#: Limits of the init phase in seconds: of CPU time, because all sandboxes share the machine, and of
#: elapsed time, in case the process only waits.
INIT_CPU_SECONDS = 10.0
INIT_SECONDS = 60.0
#: From SIGTERM to SIGKILL, with an internal extension. Source: "Shutdown phase", Understanding the
#: Lambda execution environment lifecycle.
SHUTDOWN_SECONDS = 0.5
#: Makes Linux kill the sandbox with its parent, whose end a frozen process would not notice.
_SETPRIV = shutil.which("setpriv")
KILLED_WITH_PARENT = (_SETPRIV, "--pdeathsig", "KILL") if _SETPRIV else ()

Process = asyncio.subprocess.Process | ForkedProcess


class Ending(StrEnum):
    """How a sandbox ends."""

    #: Lambda's shutdown phase: SIGTERM if it registered an extension, then SIGKILL.
    GRACEFUL = "graceful"
    #: SIGKILL; the kernel closes its connections.
    KILL = "kill"
    #: Never thawed again. The process remains, so that its open connections can be counted.
    FREEZE = "freeze"
    #: SIGKILL with its packets dropped, so that no FIN arrives, as when a micro-VM is removed.
    VANISH = "vanish"


class State(StrEnum):
    """Where a sandbox is in its life cycle."""

    #: In the init phase or serving an event.
    RUNNING = "running"
    #: After an event, until the runtime and all extensions wait in `next`.
    FREEZING = "freezing"
    FROZEN = "frozen"
    ENDING = "ending"


class Sandbox:
    """An execution environment, created by `start`, that serves one event at a time until `end`.

    Between events it is frozen: the process is stopped and, with a `packet_filter`, its packets are
    dropped, as for a paused micro-VM. Without a filter the kernel acknowledges packets and accepts
    a FIN.
    """

    def __init__(self, api: RuntimeApi, process: Process, packet_filter: Filter | None) -> None:
        self._api = api
        self.pid = process.pid
        self._connections = Connections(process.pid, api.port, packet_filter)
        self.state = State.RUNNING
        #: The task that freezes or ends the sandbox.
        self._transition: asyncio.Task[None] | None = None
        #: The id of the current or latest request.
        self.serving: str | None = None
        self._exited = asyncio.create_task(process.wait())

    @classmethod
    async def start(
        cls,
        handler: str,
        environment: dict[str, str],
        *,
        extensions: bool = True,
        log: Path | None = None,
        root: Path = ROOT,
        python: str = sys.executable,
        packet_filter: Filter | None = None,
        fork_server: ForkServer | None = None,
    ) -> "Sandbox":
        """Start the init phase of a new process.

        `extensions`: whether it may register any. `log`: a file for its output (None: inherited).
        `root`: the folder with the code, as /var/task; only it is on the path. `python`: the
        interpreter with the code's packages. `fork_server`: starts the process, with its own root
        and interpreter.

        `environment` may select a Managed Instance (AWS_LAMBDA_MAX_CONCURRENCY processes) or
        SnapStart (AWS_LAMBDA_INITIALIZATION_TYPE), which is restored from a snapshot.
        """
        uses_snapshot = environment.get("AWS_LAMBDA_INITIALIZATION_TYPE") == "snap-start"
        mode: Mode = "snapshot" if uses_snapshot else "start"
        processes = 0 if uses_snapshot else int(environment.get("AWS_LAMBDA_MAX_CONCURRENCY", 1))
        if fork_server is not None:
            root = fork_server.root
        command = client_command(python, mode, handler)
        api = RuntimeApi(extensions, processes)
        await api.start()
        try:
            variables = _environment(handler, api.address, root) | environment
            if fork_server is not None:
                process: Process = await fork_server.fork(handler, variables, log)
            else:
                with contextlib.nullcontext() if log is None else log.open("ab") as output:
                    process = await asyncio.create_subprocess_exec(
                        *(*KILLED_WITH_PARENT, *command),
                        cwd=root,
                        env=variables,
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
    def frozen(self) -> bool:
        return self.state is State.FROZEN

    @property
    def exit_status(self) -> int | None:
        """The exit status, negative for a signal, None while the process runs."""
        return self._exited.result() if self._exited.done() else None

    def connections(self) -> list[Ports]:
        """Return the ports of its connections, except those to the Runtime API."""
        return self._connections.ports()

    async def invoke(self, event: Any, timeout_s: float) -> InvocationResult:
        """Send one event, after the init phase if necessary, and wait for the result.

        Failures are results, as on Lambda; if the process fails, it is no longer `alive`.
        `timeout_s`: the function's.
        """
        started = time.monotonic()
        await self._thaw()
        invocation = Invocation(json.dumps(event).encode(), timeout_s)
        self.serving = invocation.request_id
        failure = await self._wait_for(self._initialized(), INIT_SECONDS)
        if failure is None:
            self._api.hand_over(invocation)
            failure = await self._wait_for(invocation.outcome, timeout_s)
        payload, error = failure or invocation.outcome.result()
        ms = (time.monotonic() - started) * 1000
        if self.alive and self.state is State.RUNNING:
            self.state = State.FREEZING
            self._transition = asyncio.create_task(self._freeze())
        return InvocationResult(invocation.request_id, payload, error, self.pid, ms)

    async def invoke_all(self, events: list[Any], timeout_s: float) -> list[Any]:
        """Send the events to different processes of this sandbox and return the payloads."""
        await self._initialized()
        invocations = [Invocation(json.dumps(event).encode(), timeout_s) for event in events]
        for invocation in invocations:
            self._api.hand_over(invocation)
        async with asyncio.timeout(timeout_s):
            return [(await invocation.outcome)[0] for invocation in invocations]

    async def snapshot(self) -> None:
        """SnapStart: wait for the snapshot."""
        async with asyncio.timeout(INIT_SECONDS):
            await self._api.snapshot.wait()

    async def restore(self, copies: int) -> None:
        """SnapStart: wait for the snapshot, then restore it `copies` times."""
        await self.snapshot()
        async with asyncio.timeout(INIT_SECONDS):
            for _ in range(copies):
                self._api.restore()
            await self._api.parked.wait()

    async def settled(self) -> bool:
        """Wait until the runtime and all extensions wait in `next`, or the process has exited.

        Return whether the process is alive.
        """
        parked = asyncio.ensure_future(self._api.parked.wait())
        await asyncio.wait({parked, self._exited}, return_when=asyncio.FIRST_COMPLETED)
        parked.cancel()
        return self.alive

    async def _initialized(self) -> None:
        """Wait for the end of the init phase. Raises TimeoutError above its limit of CPU time."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._api.parked.wait(), 1)
                return
            with contextlib.suppress(psutil.NoSuchProcess):
                cpu = psutil.Process(self.pid).cpu_times()
                if cpu.user + cpu.system > INIT_CPU_SECONDS:
                    raise TimeoutError

    async def _freeze(self) -> None:
        await self._api.parked.wait()
        if self.state is not State.FREEZING:
            return
        self._signal(signal.SIGSTOP)
        self.state = State.FROZEN
        self._connections.drop_packets()

    async def _thaw(self) -> None:
        if self._transition is None or self.state is State.ENDING:
            return
        self._transition.cancel()
        await asyncio.wait({self._transition})
        if self.frozen:
            self._connections.restore_packets()
            self._signal(signal.SIGCONT)
        if self.state in (State.FREEZING, State.FROZEN):  # not if `end` was called meanwhile
            self.state = State.RUNNING

    async def _wait_for(
        self, awaitable: Awaitable[Any], seconds: float
    ) -> tuple[dict[str, Any], str] | None:
        """Wait for `awaitable`, and return None.

        If the process fails or the time is over first, end it and return the payload and type of
        Lambda's error.
        """
        waiting = asyncio.ensure_future(awaitable)
        events = {waiting, self._exited, self._api.init_error}
        await asyncio.wait(events, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if waiting.done() and not waiting.exception():
            return None
        waiting.cancel()
        if self._api.init_error.done():
            reported = self._api.init_error.result()
            error, message = reported.get("errorType", "?"), reported.get("errorMessage", "?")
        elif self._exited.done():
            status = self._exited.result()
            cause = f"signal: {signal.Signals(-status).name}" if status < 0 else f"status {status}"
            error, message = "Runtime.ExitError", f"Runtime exited with error: exit {cause}"
        else:
            error, message = "Sandbox.Timedout", f"Task timed out after {seconds:.2f} seconds"
        await self.end()
        return {"errorType": error, "errorMessage": message}, error

    async def end(self, ending: Ending = Ending.GRACEFUL) -> None:
        """End the sandbox. This can be called again, even after FREEZE."""
        if ending is Ending.FREEZE:
            if self.state is State.FREEZING and self._transition is not None:
                await self._transition
            return
        if self.state is not State.ENDING:
            was_frozen, self.state = self.frozen, State.ENDING
            if self._transition is not None:
                self._transition.cancel()  # it may wait for an event that never comes
            self._transition = asyncio.create_task(self._end(ending, was_frozen))
        if self._transition is not None:
            await asyncio.shield(self._transition)

    async def _end(self, ending: Ending, was_frozen: bool) -> None:
        if ending is Ending.VANISH:
            self._connections.drop_packets_for_good()
        else:
            self._connections.restore_packets()
        if ending is Ending.GRACEFUL:
            if was_frozen:
                self._signal(signal.SIGCONT)
            if self._api.extensions and self.alive:
                self._signal(signal.SIGTERM)
                await asyncio.wait({self._exited}, timeout=SHUTDOWN_SECONDS)
        self._signal(signal.SIGKILL)
        await self._exited
        await self._api.close()

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


def _environment(handler: str, runtime_api: str, root: Path) -> dict[str, str]:
    """Return those of Lambda's variables that a handler or the runtime client reads.

    Source: "Defined runtime environment variables", AWS Lambda Developer Guide.
    """
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
