"""The Runtime API and the Extensions API of one sandbox.

Each sandbox has its own port, because the runtime client is configured with a host and port only.
Sources: "Using the Lambda runtime API for custom runtimes" and "Using the Lambda Extensions API",
AWS Lambda Developer Guide.
"""

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from infra.local.fleet.peer import ours_alone

#: The size limit of events and responses of synchronous invocations, in bytes.
PAYLOAD_LIMIT = 6 * 2**20
ARN = "arn:aws:lambda:eu-central-1:000000000000:function:warm-engine"


@dataclass(frozen=True)
class InvocationResult:
    """The result of an invocation: a response or an error."""

    request_id: str
    payload: Any
    #: Lambda's error type, or None.
    error: str | None
    #: The process that served the event.
    pid: int
    #: Milliseconds from the event to the response, including a cold start.
    ms: float
    cold: bool = False


@dataclass
class Invocation:
    """An event in progress. `timeout`: the function's, in seconds."""

    event: bytes
    timeout: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: The payload, and Lambda's error type or None.
    outcome: asyncio.Future[tuple[Any, str | None]] = field(default_factory=asyncio.Future)


class RuntimeApi:
    """The server for the runtime and extensions of one sandbox, from `start` to `close`.

    `processes`: the number of runtime processes; several on Managed Instances, 0 before a restore.
    """

    def __init__(self, may_register: bool = True, processes: int = 1) -> None:
        self._may_register = may_register
        self._processes = processes
        self._events: asyncio.Queue[Invocation] = asyncio.Queue()
        self._current: dict[str, Invocation] = {}
        self._runtimes_parked = 0
        #: Set when the runtime waits for a restore, which is when Lambda creates the snapshot.
        self.snapshot = asyncio.Event()
        self._restores = asyncio.Semaphore(0)
        #: Whether the extension waits in `next`, by the identifier of each registered extension.
        self.extensions: dict[str, bool] = {}
        #: Set while the runtime and all extensions wait in `next`, which is when Lambda freezes.
        self.parked = asyncio.Event()
        #: The error that the runtime reported for its init phase.
        self.init_error: asyncio.Future[dict[str, Any]] = asyncio.Future()
        self._runner: web.AppRunner | None = None
        self.address, self.port = "", 0

    async def start(self) -> None:
        # Other users must not receive events or send responses.
        app = web.Application(client_max_size=2**30, middlewares=[ours_alone()])
        runtime, extension = "/2018-06-01/runtime", "/2020-01-01/extension"
        app.add_routes(
            [
                web.get(f"{runtime}/invocation/next", self._next),
                web.post(f"{runtime}/invocation/{{id}}/response", self._response),
                web.post(f"{runtime}/invocation/{{id}}/error", self._error),
                web.post(f"{runtime}/init/error", self._init_error),
                web.get(f"{runtime}/restore/next", self._restore_next),
                web.post(f"{runtime}/restore/error", self._init_error),
                web.post(f"{extension}/register", self._register),
                web.get(f"{extension}/event/next", self._extension_next),
            ]
        )
        # handler_cancellation: a runtime that exited no longer waits in `next`.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.address, self.port = f"{host}:{port}", int(port)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def hand_over(self, invocation: Invocation) -> None:
        """Send an event to the runtime, which waits in `next`."""
        self._events.put_nowait(invocation)
        self.parked.clear()

    def _park(self) -> None:
        if self._runtimes_parked >= self._processes > 0 and all(self.extensions.values()):
            self.parked.set()

    def restore(self) -> None:
        """Restore one more copy of the snapshot."""
        self._processes += 1
        self.parked.clear()
        self._restores.release()

    async def _restore_next(self, _: web.Request) -> web.Response:
        self.snapshot.set()
        await self._restores.acquire()
        return web.Response()

    async def _next(self, _: web.Request) -> web.Response:
        self._runtimes_parked += 1
        self._park()
        try:
            invocation = await self._events.get()
        finally:
            self._runtimes_parked -= 1
            self.parked.clear()
        self._current[invocation.request_id] = invocation
        return web.Response(
            body=invocation.event,
            content_type="application/json",
            headers={
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.timeout) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": ARN,
                "Lambda-Runtime-Trace-Id": _trace_header(),
            },
        )

    async def _response(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > PAYLOAD_LIMIT:
            message = f"Exceeded maximum allowed payload size ({PAYLOAD_LIMIT} bytes)."
            error = "Function.ResponseSizeTooLarge"
            self._finish(request, {"errorType": error, "errorMessage": message}, error)
            return _refuse(413, "RequestEntityTooLarge", message)
        return self._finish(request, json.loads(body or b"null"), None)

    async def _error(self, request: web.Request) -> web.Response:
        error = request.headers.get("Lambda-Runtime-Function-Error-Type", "Unhandled")
        return self._finish(request, json.loads(await request.read() or b"null"), error)

    def _finish(self, request: web.Request, payload: Any, error: str | None) -> web.Response:
        invocation = self._current.pop(request.match_info["id"], None)
        if invocation is None:
            return _refuse(400, "InvalidRequestID", "no such invocation in progress")
        if not invocation.outcome.done():
            invocation.outcome.set_result((payload, error))
        return web.json_response({"status": "OK"}, status=202)

    async def _init_error(self, request: web.Request) -> web.Response:
        if not self.init_error.done():
            self.init_error.set_result(json.loads(await request.read() or b"{}"))
        return web.json_response({"status": "OK"}, status=202)

    async def _register(self, request: web.Request) -> web.Response:
        name = request.headers.get("Lambda-Extension-Name", "")
        events = (await request.json()).get("events", [])
        if not self._may_register:
            return _refuse(403, "Extension.Forbidden", "no extensions in this sandbox")
        if self._runtimes_parked:
            return _refuse(403, "Extension.InvalidState", "the init phase is over")
        if name in (key.partition("/")[0] for key in self.extensions):
            return _refuse(403, "Extension.AlreadyRegistered", f"{name} is registered")
        if "SHUTDOWN" in events:
            return _refuse(403, "ShutdownEventNotSupportedForInternalExtension", "SHUTDOWN")
        identifier = f"{name}/{uuid.uuid4()}"
        self.extensions[identifier] = False
        return web.json_response(
            {"functionName": "warm-engine", "functionVersion": "$LATEST", "handler": "handler"},
            headers={"Lambda-Extension-Identifier": identifier},
        )

    async def _extension_next(self, request: web.Request) -> web.Response:
        identifier = request.headers.get("Lambda-Extension-Identifier", "")
        if identifier not in self.extensions:
            return _refuse(403, "Extension.UnknownExtensionIdentifier", identifier)
        self.extensions[identifier] = True
        self._park()
        await asyncio.Event().wait()  # internal extensions cannot subscribe to any event sent here
        raise AssertionError("unreachable")


def _trace_header() -> str:
    """Return an X-Ray trace header with the trace and Lambda's segment."""
    root = f"1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}"
    return f"Root={root};Parent={uuid.uuid4().hex[:16]};Sampled=1"


def _refuse(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"errorType": kind, "errorMessage": message}, status=status)
