"""The Lambda entry: `handler.main.handler`.

Owns how an event becomes a call of the app, on the runtime's own loop. Settings are read at
import: a bad value fails the init phase, with its message, and no invocation.
"""

from functools import cache
from typing import Any

from mangum import Mangum

from handler.app import PROBLEM, app
from handler.runtime import LoopThread
from handler.settings import load

load()

_loop = LoopThread()


@cache
def _adapter() -> Mangum:
    # Mangum's lifespan runs startup *and shutdown* on every invocation: a dispose() there would
    # throw the engine away each time.
    return Mangum(app, lifespan="off", text_mime_types=["application/json", PROBLEM])


def _invoke(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return _adapter()(event, context)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """Serve one event. Only hands it to the loop's thread and waits."""
    return _loop.call(_invoke, event, context)
