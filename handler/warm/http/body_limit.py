"""The limit of a request body's size."""

from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

#: The key of the body's size in the ASGI scope, in bytes. The Lambda adapter sets it, because it
#: has the whole body; elsewhere it is unknown.
BODY_SIZE = "warm.body_size"


def limit_body(app: ASGIApp, max_body_size: int) -> ASGIApp:
    """ASGI middleware: 413 for a body of more than `max_body_size` bytes.

    A body of known size is counted only if it is too large. FastAPI's `max_body_size` counts every
    body for the app, the router and the route: 4 % of a warm request's instructions.
    """
    counting_app = RequestBodyLimitMiddleware(app, max_body_size)

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        is_small = scope.get(BODY_SIZE, max_body_size + 1) <= max_body_size
        await (app if is_small else counting_app)(scope, receive, send)

    return serve
