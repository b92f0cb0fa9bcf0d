"""Which failure is which.

Owns the table from an exception to what went wrong, in words that name the fault and the way out,
and to the status a caller gets. A leaf: it never imports the engine and never raises.
"""

import re
import ssl
from dataclasses import dataclass

import asyncpg
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

#: What stands between the caller and the database, in any of the classes it comes in. SQLAlchemy
#: wraps what the driver says of Postgres; what the network says of the driver comes through raw.
DatabaseFailure = (DBAPIError, PoolTimeout, OSError, TimeoutError, asyncpg.InterfaceError)


@dataclass(frozen=True)
class Failure:
    """One condition: `fault` and `remedy` for the operator, `status` for the caller, who may come
    again after `retry_after` seconds (None: coming again does not help)."""

    fault: str
    remedy: str
    status: int = 503
    retry_after: int | None = 1


def classify(error: BaseException) -> Failure:
    """The condition behind `error`. 08P01 is PgBouncer's word for capacity, authentication and
    configuration alike, so there the message decides."""
    cause = getattr(error, "driver_exception", None) or error
    state = getattr(cause, "sqlstate", None)
    # The first line: what follows may quote a row. Never the statement or its parameters.
    says = (str(cause).splitlines() or [type(cause).__name__])[0]
    match cause:
        case ssl.SSLError():
            return Failure(
                f"TLS with the server failed: {getattr(cause, 'verify_message', says) or says}",
                "DB_SSLROOTCERT must hold the CA that signed its certificate, and DB_HOST its name",
            )
        case ConnectionError() if "SSL" in says:
            return Failure(
                "the server refused TLS",
                "turn TLS on in PgBouncer, or set DB_SSLMODE=disable on a network you trust",
            )
        case PoolTimeout():
            return Failure("no connection came free within DB_POOL_TIMEOUT", "raise DB_POOL_SIZE")
        case TimeoutError():
            return Failure(
                "the database did not answer in time", "is PgBouncer at DB_HOST and DB_PORT alive?"
            )
        case OSError():
            return Failure(
                f"the database cannot be reached: {cause.strerror or says}",
                "is PgBouncer running at DB_HOST and DB_PORT?",
            )
    if state in ("28P01", "28000") or re.search("authentication failed|no such user", says):
        # PgBouncer says so of a database it does not know, too.
        return Failure("authentication failed", "check DB_USER, DB_PASS and DB_NAME")
    if state == "53300" or "no more connections allowed" in says:
        return Failure(
            f"the database is full: {says}",
            "connect through PgBouncer, or raise its max_client_conn",
        )
    if state == "3D000" or "no such database" in says:
        return Failure(says, "check DB_NAME")
    if state == "42P01":
        return Failure(says, "run the migrations: alembic upgrade head")
    if state == "42501":
        return Failure(says, "run the migrations: they grant what the routes need")
    if state == "57014":
        return Failure(
            "the query ran into statement_timeout", "ask for less, or raise it on the role"
        )
    if state is None or state[:2] in ("08", "40", "53", "57"):
        return Failure(f"the connection failed: {says}", "see the logs of PgBouncer and Postgres")
    return Failure(f"the database said: {says} ({state})", "mend the query", 500, None)
