"""Errors that a real server rarely causes are classified correctly."""

import asyncpg
import pytest

from handler.warm.request_policy import QUERY_ERRORS, classify


def test_a_connection_the_server_is_closing_is_retried() -> None:
    """asyncpg raised this when a backend was terminated while its client was idle."""
    message = "cannot switch to state 11; another operation (2) is in progress"
    assert classify(asyncpg.InternalClientError(message)).retryable
    assert issubclass(asyncpg.InternalClientError, QUERY_ERRORS)  # not wrapped by SQLAlchemy


@pytest.mark.parametrize("error", [ValueError("no"), KeyError(), Exception(), MemoryError()])
def test_an_unknown_error_is_a_500_and_is_not_retried(error: BaseException) -> None:
    failure = classify(error)
    assert (failure.status, failure.retry_after, failure.retryable) == (500, None, False)


def test_an_error_message_is_one_line_without_row_data() -> None:
    error = asyncpg.UniqueViolationError("duplicate key value")
    error.detail = "Key (customer_name)=(Crimson Candles) already exists."
    assert "Crimson" in str(error)
    assert "Crimson" not in classify(error).cause
    assert "\n" not in classify(error).cause
