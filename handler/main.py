"""The Lambda entry: `handler.main.handler`.

Owns which event is which, and runs each on the runtime's own loop. Settings are read at import: a
bad value fails the init phase, with its message, and no invocation.
"""

import gc
import sys

# What importing makes stays: a tenth of a cold start's CPU went into looking for garbage in it.
gc.disable()

from typing import Any, cast

from pydantic import BaseModel

# FastAPI describes OpenAPI in pydantic models, which nobody needs before he asks for the document:
# built then, in 4 ms, and not at every cold start, in 25 to 40. No other model is deferred.
BaseModel.model_config["defer_build"] = True
import fastapi.openapi.models  # noqa: F401  # to have been imported

del BaseModel.model_config["defer_build"]

# It asks whether a model is of pydantic 1, and imports all of that to tell: 15 ms. None is.
sys.modules.setdefault("pydantic.v1", cast(Any, None))

import asyncio
import json
from functools import cache

from mangum import Mangum
from starlette.requests import Request
from starlette.types import Receive, Scope, Send

from handler import engine, failures, logs, orders, problems
from handler.app import app
from handler.runtime import Loop, around_snapshot, call_at_shutdown
from handler.settings import load

if sys.modules["pydantic.v1"] is None:
    del sys.modules["pydantic.v1"]

#: What is kept of an invocation's time for cancelling the query and sending the answer, in seconds.
MARGIN = 0.5

_loop = Loop()


async def _in_time(scope: Scope, receive: Receive, send: Send) -> None:
    """The app, or an answer while Lambda still takes one: past the function's time-out it ends the
    sandbox, and the caller hears nothing."""
    context = scope.get("aws.context")
    left = context.get_remaining_time_in_millis() / 1000 - MARGIN if context else None
    try:
        async with asyncio.timeout(left) as limit:
            await app(scope, receive, send)
        return
    except TimeoutError:
        if not limit.expired():
            raise  # a bug in the app, which has answered
        logs.current().outcome = "late"
        late = problems.respond(Request(scope), 504, "There was no time left for an answer.")
    except asyncio.CancelledError:
        logs.current().outcome = "cancelled"
        late = problems.respond(Request(scope), 503, "Come again.", {"Retry-After": "1"})
    await late(scope, receive, send)


@cache  # made at the first event: Mangum asks for the thread's loop, and there is none before
def _adapter() -> Mangum:
    # Mangum's lifespan runs startup *and shutdown* on every invocation: a dispose() there would
    # throw the engine away each time.
    return Mangum(_in_time, lifespan="off", text_mime_types=["application/json", problems.PROBLEM])


def handler(event: Any, context: Any) -> Any:
    """Serve one event, where no other loop runs."""
    return _loop.call(_serve, event, context)


def _serve(event: Any, context: Any) -> Any:
    request_id = getattr(context, "aws_request_id", None)
    return logs.invocation(request_id, lambda: _answer(event, context))


def _answer(event: Any, context: Any) -> Any:
    if isinstance(event, dict) and "requestContext" in event:
        try:
            _take_stage_off(event["requestContext"])
            return _adapter()(event, context)
        except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
            # Of the event alone: what the app raises, Mangum answers itself.
            return _refuse("an HTTP event that cannot be read", type(error).__name__, context)
    if isinstance(event, dict) and event.get("source") in ("aws.events", "aws.scheduler"):
        return asyncio.get_event_loop().run_until_complete(_ping())
    kind = sorted(event)[:5] if isinstance(event, dict) else type(event).__name__
    return _refuse("an event that is neither HTTP nor a schedule's", kind, context)


def _take_stage_off(context: dict[str, Any]) -> None:
    """An HTTP API puts a named stage in front of the path; a REST API does not."""
    http, prefix = context.get("http"), f"/{context.get('stage')}"
    if http and http["path"].startswith(f"{prefix}/"):
        http["path"] = http["path"].removeprefix(prefix)


async def _ping() -> dict[str, Any]:
    """What a schedule is for: keep this sandbox and its connection warm, and old keys few."""
    try:
        forgotten = await orders.forget_old_requests()
    except failures.DatabaseError as error:
        logs.failed(error.failure.fault, error.failure.remedy, error.failure.sqlstate)
        return {"warm": False, "detail": error.failure.fault}
    return {"warm": True, "forgotten": forgotten}


def _refuse(what: str, detail: object, context: Any) -> dict[str, Any]:
    logs.failed(f"{what}: {detail}", "see what invokes this function")
    body = json.dumps(problems.body(400, f"This function was sent {what}.", context))
    return {"statusCode": 400, "headers": {"content-type": problems.PROBLEM}, "body": body}


def _leave_nothing() -> None:
    """In a snapshot: no connection, no credential and no loop, which its copies would share."""
    _loop.run(engine.dispose)
    _loop.close()


call_at_shutdown(lambda: _loop.finish(engine.dispose))
around_snapshot(_leave_nothing, lambda: _loop.run(engine.prewarm))
engine.engine()  # connects nothing, but reads the settings and the CA file
if load().prewarm != "off":
    _loop.run(engine.prewarm)
gc.freeze()
gc.enable()
