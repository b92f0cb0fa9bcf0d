"""Request policy: the deadline, the retry, and the status and `Retry-After` of each failure.

One table maps an error to a failure: name, cause, hint, HTTP status, and whether it is retryable.
"""

from __future__ import annotations

import asyncio
import random
import re
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Protocol, TypeVar

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from handler.warm import errors, log_line
from handler.warm.errors import ConstraintError, CredentialsError, DatabaseError, Failure

T = TypeVar("T")
#: Reserved at the end of an invocation to cancel the query and send the response, in seconds.
MARGIN = 0.5
#: The part of MARGIN that cancelling may take, in seconds.
CANCEL_TIMEOUT = 0.2
#: How long pre-warming may take, in seconds; Lambda limits the init phase to 10.
PREWARM_TIMEOUT = 2.0
#: Upper bound of the random backoff before the retry, in seconds, so that a fleet does not
#: reconnect all at once after a restart of PgBouncer.
MAX_BACKOFF = 0.1

#: Everything that a query can raise: SQLAlchemy wraps the driver's errors, but not the network's.
QUERY_ERRORS = (
    *(DBAPIError, PoolTimeout, OSError, TimeoutError, BufferError, CredentialsError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError),
)

PAST_DEADLINE = Failure("the deadline passed", "do less per invocation", 504, None, name="deadline")
SHUTDOWN = Failure("the execution environment ended", "the caller may retry", name="shutdown")
_LOGS = "see the logs of PgBouncer and Postgres"
_LOST = Failure("the connection was lost: {}", _LOGS, retryable=True)
_REFUSED = Failure("authentication failed", "check DB_USER, DB_PASS and DB_NAME, or DB_AUTH")
#: A leftover SET is possible without `server_reset_query_always`.
_RECONNECT = "run RECONNECT in PgBouncer: another client's SET may be in effect on a connection"

# Name, exception class, patterns for SQLSTATE and message → failure. The first match wins.
# Only the message distinguishes PgBouncer's errors of capacity, authentication and configuration
# (all 08P01), and the driver's lost connections (all 08003).
_TABLE: list[tuple[errors.FailureName, type[BaseException], str, str, Failure]] = [
    ("credentials", CredentialsError, "", "password without SCRAM", Failure(
        "{}", "if you run the server, set scram-sha-256 in pg_hba.conf and in auth_type")),
    ("credentials", CredentialsError, "", "NotFound|Validation|InvalidParameter|JSON", Failure(
        "no credentials: {}", "check DB_SECRET_ARN and the content of that secret")),
    ("credentials", CredentialsError, "", "AccessDenied|Decryption|KMS", Failure(
        "no credentials: {}", "allow the function's role to read DB_SECRET_ARN")),
    ("credentials", CredentialsError, "", "Token|Signature|Credentials|NoRegion", Failure(
        "no credentials: {}", "check the function's role, its session and AWS_REGION")),
    ("credentials", CredentialsError, "", "", Failure(
        "no credentials: {}", "check that the function's subnets can reach Secrets Manager")),
    ("tls", ssl.SSLError, "", "Missing Authority Key Identifier", Failure(
        "TLS with the server failed: {}",
        "reissue its certificate with authorityKeyIdentifier, required since Python 3.13")),
    ("tls", ssl.SSLError, "", "PROTOCOL_VERSION|UNSUPPORTED_PROTOCOL", Failure(
        "TLS with the server failed: {}", "enable TLS 1.3 on the server")),
    ("tls", ssl.SSLError, "", "", Failure(
        "TLS with the server failed: {}",
        "its certificate must be valid now, match DB_HOST, and be from the CA in DB_SSLROOTCERT")),
    ("tls", ConnectionError, "", "SSL", Failure(
        "the server refused TLS",
        "enable TLS in PgBouncer, or set DB_SSLMODE=disable on a network you trust")),
    ("pool_timeout", PoolTimeout, "", "", Failure(
        "the pool had no free connection within DB_POOL_TIMEOUT", "raise DB_POOL_SIZE")),
    ("timeout", TimeoutError, "", "", Failure(
        "the database did not answer in time",
        "check that PgBouncer at DB_HOST and DB_PORT responds, and that Postgres behind it does")),
    ("unreachable", OSError, "", "", Failure(
        "the database cannot be reached: {}", "check that PgBouncer runs at DB_HOST and DB_PORT",
        retryable=True)),
    ("authentication", Exception, "", "(PAM|IAM) authentication failed", replace(_REFUSED, hint=(
        "the token is signed for DB_HOST: use the endpoint, not an alias; allow rds-db:connect"))),
    ("authentication", Exception, "28...", "", _REFUSED),
    ("authentication", Exception, "", "authentication failed|no such user", _REFUSED),
    ("postgres_full", Exception, "53300", "", Failure(
        "Postgres is full: {}", "connect through PgBouncer", retry_after=2)),
    ("pooler_lookup", Exception, "", "bouncer config error", Failure(
        "PgBouncer cannot look up the login: {}",
        "see its log for why auth_query failed; check the privileges of its lookup role")),
    ("pooler_full", Exception, "", "no more connections allowed", Failure(
        "PgBouncer is full: {}", "see who holds its client slots (make status)", retry_after=2)),
    ("pooler_wait", Exception, "", "query_wait_timeout", Failure(
        "PgBouncer had no free server connection",
        "see what holds or refuses its server connections (make status)", retry_after=5)),
    ("statement_timeout", Exception, "57014", "", Failure("the query exceeded statement_timeout",
        "speed it up, raise the role's limit, or look for locks (make status)", 504, None)),
    ("query_timeout", Exception, "", "query timeout", Failure(
        "the query exceeded PgBouncer's query_timeout", "lower statement_timeout", 504, None)),
    ("postgres_unreachable", Exception, "", "server login has been failing", Failure(
        "PgBouncer cannot reach Postgres", "check that Postgres is running")),
    ("read_only", Exception, "25006", "", Failure(
        "{}", "connect to the primary, without read_only=True. If you already do, " + _RECONNECT)),
    ("query", Exception, "25P02", "", Failure(
        "{}", "let the first error propagate, or use begin_nested() for what may fail", 500, None)),
    ("unknown_database", Exception, "3D000", "", Failure("no such database", "check DB_NAME")),
    ("schema", Exception, "42(P01|883)", "^(relation|function) ", Failure(
        "{}", "run the migrations. If you have, " + _RECONNECT)),
    ("permission", Exception, "42501", "", Failure(
        "{}", "run the migrations, which grant the privileges")),
    # The statement, possibly a write, has run: only idempotent work is retried.
    ("stale_statement", asyncpg.InvalidCachedStatementError, "", "", Failure(
        "a column's type changed after the statement was prepared",
        "the next call prepares the statement again", retryable=True)),
    ("connection_lost", Exception, "", "connection (was|is) closed", _LOST),
    # The driver has read the server's last message but not yet the end of the stream.
    ("connection_lost", asyncpg.InternalClientError, "", "", _LOST),
    ("deadlock", Exception, "40P01", "", Failure(
        "a deadlock: {}", "always lock rows sorted by their keys", retryable=True)),
    ("serialization", Exception, "40001", "", Failure(
        "a serialization failure: {}", "keep serializable transactions short", retryable=True)),
    ("invalid_value", Exception, "23(502|514)", "", Failure(
        "{}", "validate the value in the route", 422, None)),
    ("conflict", Exception, "23...", "", Failure("{}", "handle it in the route", 409, None)),
    ("unavailable", Exception, "(08|40|53|57)...", "", Failure(
        "the database is not available: {}", _LOGS)),
    ("ids_exhausted", Exception, "2200H", "", Failure(
        "no ids are left: {}", "give the sequence and its columns a larger type", 500, None)),
    # Without the server's message, which quotes the value.
    ("invalid_value", Exception, "22...", "", Failure(
        "a value is invalid or out of range", "validate it in the route", 500, None)),
    ("query", BaseException, "", "", Failure("the query failed: {}", "fix the query", 500, None)),
]  # fmt: skip


def classify(error: BaseException) -> Failure:
    """Return the failure that describes `error`."""
    # `driver_exception` raises if SQLAlchemy 2.1 has translated InvalidCachedStatementError.
    cause = getattr(getattr(error, "orig", None), "__cause__", None) or error
    state = getattr(cause, "sqlstate", None) or ""
    # Only the first line: the others may quote a row. Never the statement or its parameters.
    text = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or str(cause)
    text = (text.splitlines() or [type(cause).__name__])[0]
    for name, kind, states, words, failure in _TABLE:
        if isinstance(cause, kind) and re.match(states, state) and re.search(words, text):
            text = type(cause).__name__ if failure is _TABLE[-1][-1] else text  # may quote a value
            message = failure.cause.replace("{}", text)
            return replace(failure, name=name, cause=message, sqlstate=state or None)
    raise AssertionError("the last row matches every error")


def database_error(error: BaseException) -> DatabaseError:
    """Return the DatabaseError to raise instead of `error`."""
    failure = classify(error)
    if not (failure.sqlstate or "").startswith("23"):
        return DatabaseError(failure)
    violation, cause = ConstraintError(failure), getattr(error, "driver_exception", error)
    violation.constraint = getattr(cause, "constraint_name", None)
    violation.column = getattr(cause, "column_name", None)
    return violation


def is_refused_login(error: BaseException) -> bool:
    """Return whether the server refused the login, in which case another password may work."""
    return classify(error).cause == _REFUSED.cause


class LambdaContext(Protocol):
    aws_request_id: str

    def get_remaining_time_in_millis(self) -> int: ...


def seconds_left(context: LambdaContext | None) -> float | None:
    """Return the seconds until the deadline; None if there is none (a script, uvicorn)."""
    return context.get_remaining_time_in_millis() / 1000 - MARGIN if context else None


class TranslatedErrors(AbstractContextManager[None]):
    """A context manager that raises database errors of its block as DatabaseError."""

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        if isinstance(error, QUERY_ERRORS):
            raise database_error(error) from error


async def with_retry(attempt: Callable[[], Awaitable[T]], is_safe: Callable[[], bool]) -> T:
    """Await `attempt()`; if its failure is retryable and `is_safe()`, retry it once."""
    try:
        return await attempt()
    except DatabaseError as error:
        if not error.failure.retryable:
            raise
        if not is_safe():
            error.mark_not_retried()
            raise
        log_line.retrying(error.failure)
    await asyncio.sleep(random.uniform(0, MAX_BACKOFF))  # noqa: S311  # no secret depends on it
    return await attempt()
