"""HTTP methods: HEAD for every GET, and `Allow` with all methods of a path."""

from collections.abc import Sequence

from fastapi.routing import RouteContext, iter_route_contexts
from starlette.routing import BaseRoute, Match
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send


def complete_methods(app: ASGIApp) -> ASGIApp:
    """ASGI middleware: FastAPI's routes have no HEAD (fastapi/fastapi#1773), and the `Allow` of
    Starlette's 405 has the methods of one route only."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        # Kept, because a mounted app changes both in the scope.
        outermost, root_path = scope["app"], scope.get("root_path", "")

        async def send_with_allow(message: Message) -> None:
            if message.get("status") == 405:
                methods = _methods(outermost.routes, {**scope, "root_path": root_path})
                # If the route has the method, the app itself returned the 405 and its `Allow`.
                if methods and scope["method"] not in methods:
                    names = ", ".join(sorted(methods | {"HEAD"} if "GET" in methods else methods))
                    others = [pair for pair in message["headers"] if pair[0] != b"allow"]
                    message = {**message, "headers": [*others, (b"allow", names.encode())]}
            await send(message)

        if scope.get("method") == "HEAD" and _first_has_no_head(outermost.routes, scope):
            scope = {**scope, "method": "GET"}  # the server drops the body
        await app(scope, receive, send_with_allow)

    return serve


def _first_has_no_head(routes: Sequence[BaseRoute | RouteContext], scope: Scope) -> bool:
    """Tell whether the route that serves GET does not accept HEAD, even if a later one does."""
    for route in iter_route_contexts(routes):
        methods = _methods([route], scope)
        if methods & {"GET", "HEAD"}:
            return "HEAD" not in methods
    return False


def _methods(routes: Sequence[BaseRoute | RouteContext], scope: Scope) -> set[str]:
    """Return the methods of all routes for the path, also of included routers and mounted apps."""
    methods: set[str] = set()
    for route in iter_route_contexts(routes):
        match, child_scope = route.matches(scope)
        if match is not Match.NONE:
            files = {"GET", "HEAD"} if isinstance(getattr(route, "app", None), StaticFiles) else ()
            inner = _methods(getattr(route, "routes", ()), {**scope, **child_scope})
            methods |= {*files, *(route.methods or inner)}
    return methods
