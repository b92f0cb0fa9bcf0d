"""What Lambda serves to one sandbox: the Runtime API and the Extensions API.

Owns the protocol and who is parked in `next`. On a port of its own, since the runtime client takes
a host and a port and no path. Sources: "Using the Lambda runtime API for custom runtimes" and
"Using the Lambda Extensions API", AWS Lambda Developer Guide.
"""

import asyncio
import json
import time
import uuid
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

#: The largest event and answer of a synchronous invocation, in bytes.
PAYLOAD_LIMIT = 6 * 2**20
ARN = "arn:aws:lambda:eu-central-1:000000000000:function:warm-engine"


@dataclass(frozen=True)
class Answer:
    """What an invocation came to."""

    request_id: str
    payload: Any
    #: Lambda's error type, where it failed.
    error: str | None
    #: The process that served it.
    pid: int
    #: From the event's arrival to the answer, a cold start included.
    ms: float
    cold: bool = False


@dataclass
class Invocation:
    """One event on its way. `timeout`: the function's, in seconds."""

    event: bytes
    timeout: float
    request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    #: The payload, and Lambda's error type if it is one.
    answered: asyncio.Future[tuple[Any, str | None]] = field(default_factory=asyncio.Future)


class RuntimeApi:
    """Serves one runtime process and the extensions in it from `start` to `close`."""

    def __init__(self, may_register: bool = True) -> None:
        self._may_register = may_register
        self._events: asyncio.Queue[Invocation] = asyncio.Queue(1)
        self._current: Invocation | None = None
        self._runtime_parked = False
        #: Registered extensions: identifier → whether it is parked in `next`.
        self.extensions: dict[str, bool] = {}
        #: Set while the runtime and all extensions are parked: where Lambda freezes a sandbox.
        self.parked = asyncio.Event()
        #: What the runtime reported instead of getting ready.
        self.init_error: asyncio.Future[dict[str, Any]] = asyncio.Future()
        self._runner: web.AppRunner | None = None
        self.address, self.port = "", 0

    async def start(self) -> None:
        app = web.Application(client_max_size=2**30)
        runtime, extension = "/2018-06-01/runtime", "/2020-01-01/extension"
        app.add_routes(
            [
                web.get(f"{runtime}/invocation/next", self._next),
                web.post(f"{runtime}/invocation/{{id}}/response", self._response),
                web.post(f"{runtime}/invocation/{{id}}/error", self._error),
                web.post(f"{runtime}/init/error", self._init_error),
                web.post(f"{extension}/register", self._register),
                web.get(f"{extension}/event/next", self._extension_next),
            ]
        )
        # handler_cancellation: a runtime that died is not parked any more.
        self._runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address, self.port = f"{host}:{port}", int(port)

    async def close(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    def hand_over(self, invocation: Invocation) -> None:
        """Give the runtime its next event. It must be parked."""
        self._events.put_nowait(invocation)
        self.parked.clear()

    def _park(self) -> None:
        if self._runtime_parked and all(self.extensions.values()):
            self.parked.set()

    async def _next(self, _: web.Request) -> web.Response:
        self._runtime_parked = True
        self._park()
        try:
            invocation = self._current = await self._events.get()
        finally:
            self._runtime_parked = False
            self.parked.clear()
        return web.Response(
            body=invocation.event,
            content_type="application/json",
            headers={
                "Lambda-Runtime-Aws-Request-Id": invocation.request_id,
                "Lambda-Runtime-Deadline-Ms": str(int((time.time() + invocation.timeout) * 1000)),
                "Lambda-Runtime-Invoked-Function-Arn": ARN,
                "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}",
            },
        )

    async def _response(self, request: web.Request) -> web.Response:
        body = await request.read()
        if len(body) > PAYLOAD_LIMIT:
            message = f"Exceeded maximum allowed payload size ({PAYLOAD_LIMIT} bytes)."
            error = "Function.ResponseSizeTooLarge"
            self._answer(request, {"errorType": error, "errorMessage": message}, error)
            return _refused(413, "RequestEntityTooLarge", message)
        return self._answer(request, json.loads(body or b"null"), None)

    async def _error(self, request: web.Request) -> web.Response:
        kind = request.headers.get("Lambda-Runtime-Function-Error-Type", "Unhandled")
        return self._answer(request, json.loads(await request.read() or b"null"), kind)

    def _answer(self, request: web.Request, payload: Any, error: str | None) -> web.Response:
        invocation = self._current
        if invocation is None or invocation.request_id != request.match_info["id"]:
            return _refused(400, "InvalidRequestID", "that invocation is not under way")
        self._current = None
        if not invocation.answered.done():
            invocation.answered.set_result((payload, error))
        return _accepted()

    async def _init_error(self, request: web.Request) -> web.Response:
        if not self.init_error.done():
            self.init_error.set_result(json.loads(await request.read() or b"{}"))
        return _accepted()

    async def _register(self, request: web.Request) -> web.Response:
        name = request.headers.get("Lambda-Extension-Name", "")
        wanted = (await request.json()).get("events", [])
        if not self._may_register:
            return _refused(403, "Extension.Forbidden", "no extensions in this sandbox")
        if self.parked.is_set() or self._runtime_parked:
            return _refused(403, "Extension.InvalidState", "registering ends with the init phase")
        if name in (key.partition("/")[0] for key in self.extensions):
            return _refused(403, "Extension.AlreadyRegistered", f"{name} is registered")
        if "SHUTDOWN" in wanted:
            return _refused(403, "ShutdownEventNotSupportedForInternalExtension", "SHUTDOWN")
        identifier = f"{name}/{uuid.uuid4()}"
        self.extensions[identifier] = False
        return web.json_response(
            {"functionName": "warm-engine", "functionVersion": "$LATEST", "handler": "handler"},
            headers={"Lambda-Extension-Identifier": identifier},
        )

    async def _extension_next(self, request: web.Request) -> web.Response:
        identifier = request.headers.get("Lambda-Extension-Identifier", "")
        if identifier not in self.extensions:
            return _refused(403, "Extension.UnknownExtensionIdentifier", identifier)
        self.extensions[identifier] = True
        self._park()
        await asyncio.Event().wait()  # no event that it may subscribe to is ever sent
        raise AssertionError("unreachable")


def _accepted() -> web.Response:
    return web.json_response({"status": "OK"}, status=202)


def _refused(status: int, kind: str, message: str) -> web.Response:
    return web.json_response({"errorType": kind, "errorMessage": message}, status=status)
