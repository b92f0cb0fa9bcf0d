"""Which failure is which.

Owns one table, from a condition to what went wrong in words that name the fault and the way out,
what the caller gets, and whether to try again. A leaf: it never imports the engine, never raises.
"""

import re
import ssl
from dataclasses import dataclass, replace

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout


class CredentialsError(Exception):
    """No login could be had. Its text never holds one."""


#: What a query may raise, in any of the classes it comes in. SQLAlchemy wraps what the driver says
#: of Postgres; what the network says of the driver comes through raw.
RAISED = (
    *(DBAPIError, PoolTimeout, OSError, TimeoutError, BufferError, CredentialsError),
    *(asyncpg.InterfaceError, asyncpg.InternalClientError),
)


@dataclass(frozen=True)
class Failure:
    """One condition: `fault` ({} is what was said) and `remedy` for the operator, `status` for the
    caller, who may come again after `retry_after` seconds (None: that does not help).

    `again`: another connection may mend it, so it is worth one more try by us. Only where the
    statement did not run, or may run twice, as all of `orders` may. Never against overload: what
    cannot serve one request cannot serve two.
    """

    fault: str
    remedy: str
    status: int = 503
    retry_after: int | None = 1
    again: bool = False
    sqlstate: str | None = None


class DatabaseError(Exception):
    """The database did not do what it was asked to, and `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.fault} ({failure.remedy})")
        self.failure = failure


_LOST = Failure("the connection was lost: {}", "see the logs of PgBouncer and Postgres", again=True)
_REFUSED = Failure("authentication failed", "check DB_USER, DB_PASS and DB_NAME, or DB_AUTH")

# Exception class, SQLSTATE (a pattern) and words (a pattern) of it → failure. The first that fits
# counts. 08P01 is PgBouncer's word for capacity, authentication and configuration alike, and 08003
# the driver's for any connection that is gone: there only the words decide.
_TABLE: list[tuple[type[BaseException], str, str, Failure]] = [
    (CredentialsError, "", "NotFound|Validation|InvalidParameter|JSON", Failure(
        "no login could be had: {}", "check DB_SECRET_ARN, and what that secret holds")),
    (CredentialsError, "", "AccessDenied|Decryption|KMS", Failure(
        "no login could be had: {}", "allow the function's role to read DB_SECRET_ARN")),
    (CredentialsError, "", "Token|Signature|Credentials|NoRegion", Failure(
        "no login could be had: {}", "check the function's role, its session and AWS_REGION")),
    (CredentialsError, "", "", Failure(
        "no login could be had: {}", "can the function reach Secrets Manager from its subnets?")),
    (ssl.SSLError, "", "", Failure(
        "TLS with the server failed: {}",
        "its certificate must be in date, by the CA in DB_SSLROOTCERT, for the name in DB_HOST")),
    (ConnectionError, "", "SSL", Failure(
        "the server refused TLS",
        "turn TLS on in PgBouncer, or set DB_SSLMODE=disable on a network you trust")),
    (PoolTimeout, "", "", Failure(
        "no connection came free within DB_POOL_TIMEOUT", "raise DB_POOL_SIZE")),
    (TimeoutError, "", "", Failure(
        "the database did not answer in time", "is PgBouncer at DB_HOST and DB_PORT alive?")),
    (OSError, "", "", Failure(
        "the database cannot be reached: {}", "is PgBouncer running at DB_HOST and DB_PORT?",
        again=True)),
    (Exception, "28...", "", _REFUSED),
    (Exception, "", "authentication failed|no such user", _REFUSED),  # or no such database
    (Exception, "53300", "", Failure(
        "Postgres is full: {}", "connect through PgBouncer", retry_after=2)),
    (Exception, "", "no more connections allowed", Failure(
        "PgBouncer is full: {}", "raise its max_client_conn", retry_after=2)),
    (Exception, "", "query_wait_timeout", Failure(
        "no server connection came free in PgBouncer", "raise its pool, or ask for less",
        retry_after=5)),
    (Exception, "57014", "", Failure(
        "the query ran into statement_timeout", "ask for less, or raise the role's", 504, None)),
    (Exception, "", "query timeout", Failure(
        "the query ran into PgBouncer's query_timeout", "see why it was not cancelled", 504, None)),
    (Exception, "", "server login has been failing", Failure(
        "PgBouncer cannot reach Postgres", "is Postgres running?")),
    (Exception, "25006", "", Failure("{}", "is it the primary that PgBouncer leads to?")),
    (Exception, "3D000", "", Failure("{}", "check DB_NAME")),
    (Exception, "42P01", "", Failure("{}", "run the migrations: alembic upgrade head")),
    (Exception, "42501", "", Failure("{}", "run the migrations: they grant what routes need")),
    (Exception, "", "connection (was|is) closed", _LOST),
    # The driver has read that the server closes, and not yet that it has closed.
    (asyncpg.InternalClientError, "", "", _LOST),
    (Exception, "(08|40|53|57)...", "", Failure(
        "the database is not available: {}", "see the logs of PgBouncer and Postgres")),
    # What was said of a value would quote it.
    (Exception, "22...", "", Failure(
        "a value does not fit its column", "bound it in the route that takes it", 500, None)),
    (BaseException, "", "", Failure("the database said: {}", "mend the query", 500, None)),
]  # fmt: skip


def classify(error: BaseException) -> Failure:
    """The condition behind `error`."""
    cause = getattr(error, "driver_exception", None) or error
    state = getattr(cause, "sqlstate", None) or ""
    # The first line: what follows may quote a row. Never the statement or its parameters.
    said = getattr(cause, "verify_message", None) or getattr(cause, "strerror", None) or str(cause)
    said = (said.splitlines() or [type(cause).__name__])[0]
    for kind, states, words, failure in _TABLE:
        if isinstance(cause, kind) and re.match(states, state) and re.search(words, said):
            return replace(failure, fault=failure.fault.replace("{}", said), sqlstate=state or None)
    raise AssertionError("the last row fits everything")


def is_refused_login(error: BaseException) -> bool:
    """Whether another password may help."""
    return classify(error).fault == _REFUSED.fault
