"""Callers cannot start a new log line, and no log level reveals botocore's secrets."""

import io
import logging
from collections.abc import Iterator

import pytest

from handler.warm import log_line, log_safety

FORGED = 'x\n{"level": "ERROR", "outcome": "ok"}\r[ERROR] forged\u2028again\x1b[2J'


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def logger(output: io.StringIO, request: pytest.FixtureRequest) -> Iterator[logging.Logger]:
    """Create a logger whose level is set after the import of the engine."""
    assert log_line.log
    result = logging.getLogger(getattr(request, "param", "some.library"))
    handler = logging.StreamHandler(output)
    handler.setFormatter(logging.Formatter("[%(levelname)s] %(message)s"))
    result.addHandler(handler)
    result.setLevel(logging.DEBUG)
    yield result
    result.setLevel(logging.NOTSET)
    result.removeHandler(handler)


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.ERROR])
def test_caller_text_cannot_start_a_new_log_line(
    logger: logging.Logger, output: io.StringIO, level: int
) -> None:
    logger.log(level, "path %s", FORGED)
    logger.log(level, FORGED)
    logger.log(level, ValueError(FORGED))
    lines = output.getvalue().splitlines()
    assert len(lines) == 3
    assert all(line.startswith(f"[{logging.getLevelName(level)}] ") for line in lines)
    assert "\\n{" in lines[0]


def test_error_text_cannot_start_a_new_log_line(
    logger: logging.Logger, output: io.StringIO
) -> None:
    try:
        try:
            raise LookupError(FORGED)
        except LookupError as error:
            raise ExceptionGroup(FORGED, [ValueError(FORGED)]) from error
    except ExceptionGroup:
        logger.exception("the app raised an error")
    lines = output.getvalue().splitlines()
    assert not [line for line in lines if line.startswith(("{", "[ERROR] forged", "again"))]
    assert [line for line in lines if line.startswith("LookupError: x\\n")]
    assert [line for line in lines if line.startswith("ValueError: x\\n")]


def test_an_invalid_log_record_is_reported(logger: logging.Logger) -> None:
    record = logger.makeRecord("x", logging.INFO, "f", 1, "%d", ("text",), None)
    assert record.args == ("text",)
    record = logger.makeRecord("x", logging.INFO, "f", 1, "%(who)s", ({"what": 1},), None)
    assert record.args == {"what": 1}  # logging reports the KeyError; the request does not fail


@pytest.mark.parametrize(
    "logger", ["botocore.parsers", "botocore", "urllib3.connectionpool"], indirect=True
)
def test_debug_messages_that_may_quote_secrets_are_omitted(
    logger: logging.Logger, output: io.StringIO
) -> None:
    logger.debug("Response body: %s", "hunter2")
    logger.info("Found credentials in environment variables.")
    assert output.getvalue().splitlines() == [
        "[DEBUG] (omitted: it may contain a secret)",
        "[INFO] Found credentials in environment variables.",
    ]


def test_text_without_control_characters_is_unchanged() -> None:
    assert log_safety.escape("Zoë\t– 50 %") == "Zoë\t– 50 %"
