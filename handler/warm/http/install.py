"""Adds the engine's middleware and error handlers to a FastAPI app."""

from fastapi import FastAPI
from starlette.middleware import Middleware

from handler.warm import sql_log
from handler.warm.http import problems
from handler.warm.http.deadline import AnswerInTime
from handler.warm.http.methods import complete_methods


def install(app: FastAPI) -> None:
    """Add problem documents, the deadline, HEAD for every GET, and the SQL log to `app`."""
    app.add_middleware(complete_methods)
    app.add_middleware(sql_log.remember_request)
    # The last is the innermost; `add_middleware` would make it the outermost.
    app.user_middleware.append(Middleware(AnswerInTime))
    build = app.build_middleware_stack
    # Outside of all middleware, including FastAPI's limit of the body's size.
    vars(app)["build_middleware_stack"] = lambda: problems.complete_responses(build())
    problems.add_handlers(app)
