"""Safe log records: no secrets of botocore, and no control characters that could forge a line.

Done in the factory of log records, which every record passes through, whatever levels and handlers
are configured later.
"""

import logging
import re
import traceback
from collections.abc import Callable
from contextlib import suppress
from typing import Any

#: At DEBUG these log responses of Secrets Manager and the input of token signatures.
_LOGS_SECRETS = re.compile(r"(boto3|botocore|s3transfer|urllib3)(\.|$)")
_CAUSE = "The above exception was the direct cause of the following exception:"
_MEMBER = "The above exception is part of the following group:"
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


def escape(text: str) -> str:
    """Return `text` on one line, with control characters as Python escapes."""
    return _CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def _format_exception(error: BaseException, seen: set[int]) -> str:
    """Return a traceback in which no part of an error message can start a line."""
    seen.add(id(error))
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    lines = []
    if cause is not None and id(cause) not in seen:
        lines.append(f"{_format_exception(cause, seen)}\n\n{_CAUSE}\n\n")
    for part in getattr(error, "exceptions", ()):  # of a group
        lines.append(f"{_format_exception(part, seen)}\n\n{_MEMBER}\n\n")
    lines += ["Traceback (most recent call last):\n", *traceback.format_tb(error.__traceback__)]
    return "".join([*lines, f"{type(error).__qualname__}: {escape(str(error))}"])


def install() -> None:
    """Install the factory of safe log records in this process."""
    make = logging.getLogRecordFactory()

    def safe(*args: Any, **options: Any) -> logging.LogRecord:
        record = make(*args, **options)
        if record.levelno < logging.INFO and _LOGS_SECRETS.match(record.name):
            record.msg, record.args = "(omitted: it may contain a secret)", ()
        else:
            try:
                text = record.getMessage()
            except Exception:
                return record  # logging itself reports what is wrong with it
            if _CONTROL.search(text):
                record.msg, record.args = escape(text), ()
        if record.exc_info and record.exc_info[1]:
            record.exc_text = _format_exception(record.exc_info[1], set())
        return record

    logging.setLogRecordFactory(safe)
    for handler in logging.getLogger().handlers:
        vars(handler)["emit"] = _ignoring_closed_stream(handler)


def _ignoring_closed_stream(handler: logging.Handler) -> Callable[[logging.LogRecord], None]:
    """Ignore a closed stream, as the handlers of `logging` do. The runtime client's handler raises,
    so that a warning would fail its request."""
    emit = handler.emit

    def emit_if_possible(record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):
            emit(record)

    return emit_if_possible
