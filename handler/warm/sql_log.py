"""SQL log of single requests, without parameter values.

If a request sends the token of `DB_SQL_TOKEN` in the header `X-Log-SQL`, the logger `handler.sql`
logs its statements at DEBUG.
"""

import hmac
import logging
from contextvars import ContextVar
from functools import partial
from typing import Any

from pydantic import SecretStr
from sqlalchemy import Engine, event
from starlette.types import ASGIApp, Receive, Scope, Send

log = logging.getLogger("handler.sql")
log.setLevel(logging.DEBUG)  # independent of the root's level: only requested statements are logged
#: The scope of the current request.
_scope: ContextVar[Scope | None] = ContextVar("scope", default=None)


def remember_request(app: ASGIApp) -> ASGIApp:
    """Wrap `app` so that `_log_statement` can read the headers of the current request."""

    async def serve(scope: Scope, receive: Receive, send: Send) -> None:
        _scope.set(scope)
        await app(scope, receive, send)

    return serve


def log_requested_statements(engine: Engine, token: SecretStr) -> None:
    """Log the statements of requests that sent `token`."""
    secret = token.get_secret_value().encode()
    event.listen(engine, "before_cursor_execute", partial(_log_statement, secret))


def _log_statement(token: bytes, _: Any, __: Any, statement: str, *values: Any) -> None:
    scope = _scope.get() or {}
    received = dict(scope.get("headers", ())).get(b"x-log-sql", b"")
    if hmac.compare_digest(token, received):
        log.debug("%s", " ".join(statement.split()))
