"""The errors that the engine raises."""

from dataclasses import dataclass, replace
from typing import Literal

#: The names of failures in the log line and the metrics: a closed set.
FailureName = Literal[
    "app", "authentication", "background", "conflict", "connection_lost", "credentials",
    "deadline", "deadlock", "event", "ids_exhausted", "invalid_value", "permission",
    "pool_timeout", "pooler_full", "pooler_lookup", "pooler_wait", "postgres_full",
    "postgres_unreachable", "query", "query_timeout", "read_only", "schema", "serialization",
    "shutdown", "stale_statement", "timeout", "tls", "unavailable", "unknown_database",
    "unreachable", "statement_timeout",
]  # fmt: skip


class CredentialsError(Exception):
    """No usable credentials. The message never contains a credential."""


@dataclass(frozen=True)
class Failure:
    """Why work failed. `cause` and `hint` are for the operator; in the policy table `{}` stands for
    the server's message. `status` is for the caller, who may retry after `retry_after` seconds
    (None: should not simply retry). The metrics count failures by `name`.

    `retryable`: another attempt may succeed. The engine makes one if the work has not begun or is
    declared idempotent. Never set for overload. See docs/decisions/retry.md.
    """

    cause: str
    hint: str
    status: int = 503
    retry_after: int | None = 1
    retryable: bool = False
    sqlstate: str | None = None
    name: FailureName = "app"


class DatabaseError(Exception):
    """Work on the database failed; `failure` says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(f"{failure.cause} ({failure.hint})")
        self.failure = failure
        self.sqlstate = failure.sqlstate

    def mark_not_retried(self) -> None:
        """Explain in the hint why a retryable failure was not retried."""
        if self.failure.retryable:
            hint = f"{self.failure.hint}; the engine repeats only work declared idempotent=True"
            self.failure = replace(self.failure, hint=hint, retryable=False)
            self.args = (f"{self.failure.cause} ({hint})",)

    def mark_outcome_unknown(self) -> None:
        """Warn in the hint that a write may have been committed, unless the server rejected it."""
        state = self.sqlstate or "08"
        # 0A000: only after the statement had run was it noticed that its columns had changed.
        if self.failure.status == 503 and state.startswith(("08", "57P", "0A000")):
            hint = (
                "the write may have been committed: check before repeating it; " + self.failure.hint
            )
            self.failure = replace(self.failure, hint=hint, retry_after=None)
            self.args = (f"{self.failure.cause} ({hint})",)


class ConstraintError(DatabaseError):
    """A constraint was violated. `constraint` is its name, `column` the one that was NULL."""

    constraint: str | None = None
    column: str | None = None
