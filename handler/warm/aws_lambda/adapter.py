"""The Lambda adapter: dispatches HTTP and scheduled events, and refuses all others."""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from typing import Any, cast

from mangum import Mangum
from mangum.adapter import DEFAULT_TEXT_MIME_TYPES
from starlette.types import ASGIApp

from handler.warm import log_line, request_policy, tracing
from handler.warm.aws_lambda import events
from handler.warm.aws_lambda.event_loop import EventLoop
from handler.warm.aws_lambda.events import HttpEvent, HttpResponse
from handler.warm.aws_lambda.gateway import Gateway, UnreadableEventError
from handler.warm.aws_lambda.shutdown import SHUTDOWN_TIMEOUT, call_at_shutdown
from handler.warm.aws_lambda.snapstart import around_snapshot
from handler.warm.database import cancellation, engine
from handler.warm.database.run import ping
from handler.warm.errors import DatabaseError, Failure
from handler.warm.http import problems
from handler.warm.http.deadline import within_deadline
from handler.warm.request_policy import LambdaContext
from handler.warm.settings import load_settings

log = logging.getLogger(__name__)


async def _ping() -> dict[str, Any]:
    await ping()
    return {}


async def _prewarm() -> None:
    """Pre-warm with a time limit, so that a silent database does not use up the init phase."""
    try:
        async with cancellation.Invocation(request_policy.PREWARM_TIMEOUT) as invocation:
            async with asyncio.timeout_at(invocation.deadline):
                await engine.prewarm()
    except TimeoutError:
        if load_settings().prewarm == "required":
            raise
        log_line.warn("pre-warm failed; the first query will connect", request_policy.PAST_DEADLINE)


class LambdaHandler:
    """The function that Lambda calls: `handler = LambdaHandler(app)`.

    Create it in the init phase. It reads the settings, so that a bad value fails the init phase and
    not an invocation. It registers for shutdown and SnapStart, and pre-warms unless `DB_PREWARM` is
    `off`.

    HTTP events go to `app`. A scheduled event keeps the execution environment and its connection
    warm and calls `on_schedule` (default: `ping`), whose result becomes part of the response.
    Events of WebSockets and VPC Lattice get status 400. Any other event raises UnservedEventError,
    so that Lambda does not count it as processed.
    """

    def __init__(
        self, app: ASGIApp, on_schedule: Callable[[], Awaitable[dict[str, Any]]] = _ping
    ) -> None:
        self.loop = EventLoop()
        self._app = within_deadline(app)
        self._on_schedule = on_schedule
        self._is_traced = Gateway.is_traced = tracing.is_on()
        call_at_shutdown(lambda: self.loop.shut_down(engine.dispose, SHUTDOWN_TIMEOUT))
        around_snapshot(self._before_snapshot, lambda: self.loop.run(_prewarm))
        log_line.set_namespace(load_settings().effective_namespace)
        engine.get_engine()  # reads the settings and the CA file; opens no connection
        if load_settings().prewarm != "off":
            self.loop.run(_prewarm)

    def __call__(self, event: object, context: LambdaContext | None) -> Any:
        """Serve one event. Call it on a thread without a running event loop."""
        return self.loop.call(self._serve, event, context)

    @cached_property  # at the first event, because Mangum needs the thread's loop when created
    def _adapter(self) -> Callable[[HttpEvent, LambdaContext | None], HttpResponse]:
        # Without Mangum's lifespan, which runs startup and shutdown for every invocation and so
        # would dispose of the engine each time.
        text = [*DEFAULT_TEXT_MIME_TYPES, "+json", "+xml", "ndjson", "yaml", "form-urlencoded"]
        settings = load_settings()
        Gateway.base_path = f"/{settings.api_base_path.strip('/')}".rstrip("/")
        Gateway.caller_claim = settings.api_caller_claim
        mangum: Any = Mangum(self._app, "off", custom_handlers=[Gateway], text_mime_types=text)
        return cast(Callable[[HttpEvent, LambdaContext | None], HttpResponse], mangum)

    def _serve(self, event: object, context: LambdaContext | None) -> Mapping[str, object]:
        request_id = getattr(context, "aws_request_id", None)
        if not self._is_traced:
            return log_line.invocation(request_id, lambda: self._dispatch(event, context))
        with tracing.invocation():
            return log_line.invocation(request_id, lambda: self._dispatch(event, context))

    def _dispatch(self, event: Any, context: LambdaContext | None) -> Mapping[str, object]:
        kind = events.kind_of(event)  # only this tells the type of `event`
        if kind == events.HTTP:
            log_line.begin_request(event["requestContext"])
            return self._respond(event, context)
        if kind == events.SCHEDULE:
            return asyncio.get_event_loop().run_until_complete(self._run_schedule(context))
        failure = events.unserved_failure(event, kind)
        log_line.failed(failure)
        if kind in (events.WEBSOCKET, events.LATTICE):
            return _problem(400, f"This function does not serve {kind}.", event, context)
        raise events.UnservedEventError(f"{failure.cause} ({failure.hint})")

    def _respond(self, event: HttpEvent, context: LambdaContext | None) -> HttpResponse:
        try:
            return self._adapter(event, context)
        except UnreadableEventError as error:
            description = "an HTTP event that cannot be read"
            hint = "check what invokes this function"
            log_line.failed(Failure(f"{description}: {error}", hint, name="event"))
            return _problem(400, f"This function was sent {description}.", event, context)
        except (
            Exception
        ) as error:  # while converting the response; the app's own errors were handled
            log.exception("the response cannot be returned")
            return _problem(500, problems.log_bug(error), event, context)

    async def _run_schedule(self, context: LambdaContext | None) -> dict[str, Any]:
        try:
            async with cancellation.Invocation(request_policy.seconds_left(context)) as invocation:
                async with asyncio.timeout_at(invocation.deadline) as limit:
                    return {"warm": True, **await self._on_schedule()}
        except (DatabaseError, TimeoutError) as error:
            if isinstance(error, DatabaseError):
                failure = error.failure
            elif limit.expired():
                failure, log_line.current().outcome = request_policy.PAST_DEADLINE, "late"
            else:
                raise
            log_line.failed(failure)
            return {"warm": False, "detail": failure.cause}

    def _before_snapshot(self) -> None:
        """Drop connections, credentials and the loop: all copies of a snapshot would share them."""
        self.loop.run(engine.dispose)
        self.loop.close()


def _problem(
    status: int, detail: str, event: HttpEvent, context: LambdaContext | None
) -> HttpResponse:
    body = json.dumps(problems.body(status, detail, context))
    headers = {"content-type": problems.PROBLEM}
    headers |= {name.lower(): value for name, value in problems.HEADERS.items()}
    response = HttpResponse(statusCode=status, headers=headers, body=body, isBase64Encoded=False)
    if "multiValueHeaders" in event:  # then the load balancer reads only these
        response["multiValueHeaders"] = {name: [value] for name, value in headers.items()}
    return response
