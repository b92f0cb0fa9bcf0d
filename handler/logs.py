"""One JSON line per invocation, on stdout.

Owns its fields and who may add to them while the invocation runs; a leaf. What a caller sent, a row
or a secret is never among them.
"""

import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any


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


class NoteWhoAsksForSql:
    """ASGI middleware."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        sql_asked.set(dict(scope.get("headers", ())).get(b"x-log-sql", b""))
        await self._app(scope, receive, send)


@contextmanager
def invocation(request_id: str | None) -> Iterator[Invocation]:
    """Write the line when the block is left, however that happens."""
    global _served
    line, begun = Invocation(request_id, cold_start=_served == 0), time.perf_counter()
    _served += 1
    token = _current.set(line)
    try:
        yield line
    except BaseException as error:
        line.outcome, line.fault = "failed", type(error).__name__  # its text may quote anything
        raise
    finally:
        _current.reset(token)
        line.duration_ms = _since(begun)
        said = {name: value for name, value in vars(line).items() if value is not None}
        for name in ("duration_ms", "connect_ms", "query_ms"):
            said[name] = round(said[name], 2)
        print(json.dumps(said), flush=True)


def current() -> Invocation:
    """The invocation that runs; where none does (a script, uvicorn), one that nobody reads."""
    return _current.get() or Invocation()


@contextmanager
def connecting() -> Iterator[None]:
    """The block makes a raw connection."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        current().connect_ms += _since(begun)


@contextmanager
def querying() -> Iterator[None]:
    """The block asks the database, and connects first where it has to."""
    line, begun = current(), time.perf_counter()
    line.attempts += 1
    connected = line.connect_ms
    try:
        yield
    finally:
        line.query_ms += _since(begun) - (line.connect_ms - connected)


def _since(begun: float) -> float:
    return (time.perf_counter() - begun) * 1000


def failed(fault: str, remedy: str, sqlstate: str | None = None) -> None:
    """Have the line say so; where no invocation runs, the log."""
    line = _current.get()
    if line is None:
        log.error("%s (%s)", fault, remedy)
    else:
        line.fault, line.remedy, line.sqlstate = fault, remedy, sqlstate


def answered(line: Invocation, answer: Any) -> None:
    """What an answer tells of its invocation, unless that is known better."""
    line.status = answer.get("statusCode")
    code = line.status or (500 if line.fault else 200)
    line.outcome = line.outcome or ("failed" if code >= 500 else "refused" if code >= 400 else "ok")
