"""The table of failures, where what provokes one is a matter of microseconds."""

import asyncpg
import pytest

from handler.failures import RAISED, classify


def test_a_connection_caught_between_goodbye_and_close_is_worth_another_try() -> None:
    """Seen where a backend was terminated while its client was idle."""
    said = "cannot switch to state 11; another operation (2) is in progress"
    assert classify(asyncpg.InternalClientError(said)).again
    assert issubclass(asyncpg.InternalClientError, RAISED)  # it comes through raw


@pytest.mark.parametrize("error", [ValueError("no"), KeyError(), Exception(), MemoryError()])
def test_what_the_table_does_not_know_is_a_500_and_not_tried_again(error: BaseException) -> None:
    failure = classify(error)
    assert (failure.status, failure.retry_after, failure.again) == (500, None, False)


def test_a_fault_is_one_line_and_quotes_no_row() -> None:
    error = asyncpg.UniqueViolationError("duplicate key value")
    error.detail = "Key (customer_name)=(Crimson Candles) already exists."
    assert "Crimson" in str(error)
    assert "Crimson" not in classify(error).fault
    assert "\n" not in classify(error).fault
