"""One JSON line per invocation, on stdout.

Owns its fields and who may add to them meanwhile; a leaf. What a caller sent, a row or a secret is
never among them.
"""

import json
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal


@dataclass
class Invocation:
    """What is said of one invocation, times in milliseconds; what is None is left unsaid."""

    request_id: str | None = None  # Lambda's, by which the caller's problem response names it too
    cold_start: bool = False
    outcome: str = ""  # ok, refused, failed, late (out of time), cancelled (the sandbox ended)
    status: int | None = None
    duration_ms: float = 0
    attempts: int = 0  # 2 where the first query was lost, 0 without one
    connect_ms: float = 0  # 0 on a warm one
    query_ms: float = 0  # from asking the database to having the rows, connecting excluded
    fault: str | None = None
    remedy: str | None = None
    sqlstate: str | None = None


log = logging.getLogger(__name__)
sql = logging.getLogger("handler.sql")
sql.setLevel(logging.DEBUG)  # whatever the root's: only what was asked for is said
# At DEBUG it quotes what Secrets Manager answered, and what a token is signed from.
logging.getLogger("botocore").setLevel(logging.INFO)
#: What the request sent to have its SQL logged; each has a context of its own.
sql_asked: ContextVar[bytes] = ContextVar("sql_asked", default=b"")
_current: ContextVar[Invocation | None] = ContextVar("invocation", default=None)
_served = 0


def note_who_asks_for_sql(app: Any) -> Any:
    """ASGI middleware."""

    async def noting(scope: Any, receive: Any, send: Any) -> None:
        sql_asked.set(dict(scope.get("headers", ())).get(b"x-log-sql", b""))
        await app(scope, receive, send)

    return noting


def current() -> Invocation:
    """The invocation that runs; where none does (a script, uvicorn), one that nobody reads."""
    return _current.get() or Invocation()


def invocation(request_id: str | None, serve: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What `serve` answers; then the line is written, however it ended."""
    global _served
    line, begun = Invocation(request_id, cold_start=_served == 0), time.perf_counter()
    _served += 1
    token = _current.set(line)
    try:
        answer = serve()
        line.status = answer.get("statusCode")
        code = line.status or (500 if line.fault else 200)
        said = "failed" if code >= 500 else "refused" if code >= 400 else "ok"
        line.outcome = line.outcome or said
        return answer
    except BaseException as error:
        line.outcome, line.fault = "failed", type(error).__name__  # its text may quote anything
        raise
    finally:
        _current.reset(token)
        line.query_ms = round(line.query_ms - line.connect_ms, 2)
        line.connect_ms = round(line.connect_ms, 2)
        line.duration_ms = round((time.perf_counter() - begun) * 1000, 2)
        print(json.dumps({k: v for k, v in vars(line).items() if v is not None}), flush=True)


@contextmanager
def timing(field: Literal["connect_ms", "query_ms"]) -> Iterator[None]:
    """What the block takes is said of the invocation."""
    line, begun = current(), time.perf_counter()
    try:
        yield
    finally:
        setattr(line, field, getattr(line, field) + (time.perf_counter() - begun) * 1000)


def failed(fault: str, remedy: str, sqlstate: str | None = None) -> None:
    """Have the line say so; where no invocation runs, the log."""
    line = _current.get()
    if line is None:
        log.error("%s (%s)", fault, remedy)
    else:
        line.fault, line.remedy, line.sqlstate = fault, remedy, sqlstate
