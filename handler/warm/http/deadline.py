"""The deadline of an HTTP request: a response in time, and no work after it.

There are two middlewares. The inner one is inside of the app's middleware, so that a 504 or 500
gets the same headers as any response. The outer one limits that middleware too, a little later.
"""

import asyncio
import logging

from mangum.types import ASGI
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from handler.warm import log_line, request_policy
from handler.warm.database import cancellation
from handler.warm.errors import Failure
from handler.warm.http import problems

log = logging.getLogger(__name__)
_BACKGROUND = Failure(
    "a background task did not end in time", "do its work in the request", name="background"
)


class IncompleteResponseError(Exception):
    """The app returned without a complete response."""


class _Response:
    """A response that is buffered until it is complete, and can be replaced until then.

    Lambda sends a response only when it is complete. Without a deadline each part is sent at once.
    """

    def __init__(self, send: Send, is_held: bool = True) -> None:
        self._send, self._is_held = send, is_held
        self._parts: list[Message] = []
        self.is_sent = False

    def hold(self, message: Message) -> bool:
        """Keep `message`; tell whether the response is still incomplete and stays here."""
        self._parts.append(message)
        return self._is_held and (
            message["type"] == "http.response.start" or bool(message.get("more_body"))
        )

    async def send(self, message: Message) -> None:
        if not self.hold(message):
            await self.send_held()

    async def send_held(self) -> None:
        self.is_sent, parts, self._parts = True, self._parts, []
        for message in parts:
            await self._send(message)


class AnswerInTime:
    """The inner ASGI middleware: 504 after the deadline, 500 for an exception of the app."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        invocation = cancellation.current()
        deadline = invocation.deadline if invocation else None
        response = _Response(send, is_held=invocation is not None)

        async def send_whole(message: Message) -> None:
            if limit.expired() or response.hold(message):
                return  # too late, the 504 is sent instead; or incomplete
            # No deadline while the app's middleware passes on the response.
            limit.reschedule(None)
            await response.send_held()
            limit.reschedule(deadline)

        try:
            async with asyncio.timeout_at(deadline) as limit:
                try:
                    await self._app(scope, receive, send_whole)
                finally:
                    _note_route(scope)
        except Exception as error:
            if invocation and isinstance(error, TimeoutError) and limit.expired():
                await invocation.close()
                await _respond_late(response, scope, receive, send)
            elif response.is_sent:
                raise
            else:
                log.exception("the app raised an error")
                await (await problems.respond_to_bug(Request(scope), error))(scope, receive, send)


def _note_route(scope: Scope) -> None:
    """Set the path template in the log line; in a mounted app without the mount's path."""
    # Only the context has the prefix of an included router.
    route = scope.get("fastapi", {}).get("effective_route_context") or scope.get("route")
    if isinstance(path := getattr(route, "path", None), str):
        log_line.current().route = path


def within_deadline(app: ASGIApp) -> ASGI:
    """The outer ASGI middleware: limits all of `app`, cancels the work it leaves running, and sends
    a response if it sent none."""

    async def bounded(scope: Scope, receive: Receive, send: Send) -> None:
        send = _without_body(send) if scope["method"] == "HEAD" else send
        response = _Response(send)
        seconds = request_policy.seconds_left(scope.get("aws.context"))
        async with cancellation.Invocation(seconds) as invocation:
            cancel_by = invocation.deadline and invocation.deadline + request_policy.CANCEL_TIMEOUT
            try:
                async with asyncio.timeout_at(cancel_by) as limit:
                    await app(scope, receive, response.send)
                if not response.is_sent:
                    raise IncompleteResponseError
            except Exception as error:
                if isinstance(error, TimeoutError) and limit.expired():
                    await invocation.close()
                    await _respond_late(response, scope, receive, send)
                    return
                document = await problems.respond_to_bug(Request(scope), error)
                if not response.is_sent:
                    await document(scope, receive, send)
                raise  # Mangum logs its traceback
            except asyncio.CancelledError:
                line = log_line.current()
                line.outcome, line.failure = "cancelled", request_policy.SHUTDOWN
                retry = {"Retry-After": str(request_policy.SHUTDOWN.retry_after)}
                document = problems.respond(
                    Request(scope), 503, "The function is shutting down. Retry.", retry
                )
                await document(scope, receive, send)

    return bounded


def _without_body(send: Send) -> Send:
    """Drop the body in responses to HEAD, which Mangum does not do."""
    return lambda message: send({**message, "body": b""} if "body" in message else message)


async def _respond_late(response: _Response, scope: Scope, receive: Receive, send: Send) -> None:
    if response.is_sent:  # so a background task was still running
        log_line.failed(_BACKGROUND)
        return
    line = log_line.current()
    line.outcome, line.failure = "late", line.failure or request_policy.PAST_DEADLINE
    document = problems.respond(Request(scope), 504, "The request did not complete in time.")
    await document(scope, receive, send)
