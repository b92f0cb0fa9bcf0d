"""`make console`: a prompt on PgBouncer's console.

Not psql, because the one of Postgres' wheel does not support TLS, which PgBouncer requires.
"""

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import psycopg

from handler.warm.log_safety import escape
from infra.local import LabError, pgbouncer
from infra.local.status import SERVER_TIMEOUT_S, Target, on_stack, reason

EXIT_COMMANDS = {"quit", "exit", "\\q"}


def prompt(chosen: str | None) -> int:
    """Execute each line of stdin; return 1 if a script's line failed. `chosen`: see `on_stack`."""
    return on_stack("console", chosen, _prompt)


def _prompt(target: Target) -> int:
    try:
        console = pgbouncer.console(**target.console, connect_timeout=int(SERVER_TIMEOUT_S))
    except psycopg.Error as error:
        raise LabError(f"PgBouncer does not respond: {reason(error)}") from None
    interactive, failed = sys.stdin.isatty(), False
    if interactive:
        import readline  # noqa: F401  # line editing for `input`

        print(f"PgBouncer of {target.name}. SHOW HELP lists the commands, Ctrl-D exits.")
    with console:
        # SHOW HELP responds with a notice.
        console.add_notice_handler(
            lambda notice: print(notice.message_detail or notice.message_primary)
        )
        for line in _lines("pgbouncer=> " if interactive else ""):
            try:
                cursor = console.execute(line.encode())
            except psycopg.Error as error:
                print(reason(error), file=sys.stderr)
                failed = True
                if console.closed:
                    return 1
                continue
            if cursor.description is None:
                print(cursor.statusmessage)
            else:
                print(_table([column.name for column in cursor.description], cursor.fetchall()))
    return int(failed and not interactive)


def _lines(prompt: str) -> Iterable[str]:
    """Yield lines of stdin until its end or a command such as `quit`."""
    with contextlib.suppress(EOFError):
        while (line := input(prompt).strip().rstrip(";")) not in EXIT_COMMANDS:
            if line:
                yield line


def _table(names: list[str], records: list[dict[str, Any]]) -> str:
    rows = [names, *([escape(str(record[name])) for name in names] for record in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
