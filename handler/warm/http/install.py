"""Installation of the engine's middleware and error handlers in a FastAPI app."""

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp

from handler.warm import sql_log
from handler.warm.http import problems
from handler.warm.http.body_limit import limit_body
from handler.warm.http.deadline import AnswerInTime
from handler.warm.http.methods import complete_methods


def install(app: FastAPI, max_body_size: int | None = None) -> None:
    """Add problem documents, the deadline, HEAD for every GET, and the SQL log to `app`.

    `max_body_size`: the limit of a request's body in bytes; None: no limit, or FastAPI's.
    """
    app.add_middleware(complete_methods)
    app.add_middleware(sql_log.remember_request)
    # The last is the innermost; `add_middleware` would make it the outermost.
    app.user_middleware.append(Middleware(AnswerInTime))
    build = app.build_middleware_stack

    def build_stack() -> ASGIApp:
        if max_body_size is not None:  # outside of all middleware that may read the body
            app.user_middleware.insert(0, Middleware(limit_body, max_body_size=max_body_size))
        return problems.complete_responses(build())  # outside of the limit, too

    vars(app)["build_middleware_stack"] = build_stack
    problems.add_handlers(app)
