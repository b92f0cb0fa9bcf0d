"""The Lambda entry point, `handler.main.handler`: connects the sample to the engine."""

from typing import Any

from handler.warm import LambdaHandler, cheap_imports

with cheap_imports():
    from handler.app import app
    from handler.orders import forget_old_requests


async def _on_schedule() -> dict[str, Any]:
    return {"forgotten": await forget_old_requests()}


handler = LambdaHandler(app, on_schedule=_on_schedule)
