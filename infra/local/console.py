"""`make console`: a prompt on PgBouncer's console.

Not psql, because the one of Postgres' wheel does not support TLS, which PgBouncer requires.
"""

import sys
from collections.abc import Iterable
from typing import Any

import psycopg

from handler.warm.log_safety import escape
from infra.local import LabError, pgbouncer
from infra.local.status import SERVER_TIMEOUT_S, Target, on_stack, reason

END = {"quit", "exit", "\\q"}


def prompt(wanted: str | None) -> int:
    """Execute each line of stdin; return 1 if a script's line failed. `wanted`: see `on_stack`."""
    return on_stack("console", wanted, _prompt)


def _prompt(target: Target) -> int:
    try:
        console = pgbouncer.console(**target.console, connect_timeout=int(SERVER_TIMEOUT_S))
    except psycopg.Error as error:
        raise LabError(f"PgBouncer does not respond: {reason(error)}") from None
    typed, failed = sys.stdin.isatty(), False
    if typed:
        import readline  # noqa: F401  # line editing for `input`

        print(f"PgBouncer of {target.name}. SHOW HELP lists the commands, Ctrl-D ends this.")
    with console:
        # SHOW HELP responds with a notice.
        console.add_notice_handler(lambda said: print(said.message_detail or said.message_primary))
        for line in _lines("pgbouncer=> " if typed else ""):
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
                print(_table([each.name for each in cursor.description], cursor.fetchall()))
    return int(failed and not typed)


def _lines(shown: str) -> Iterable[str]:
    while True:
        try:
            line = input(shown).strip().rstrip(";")
        except EOFError:
            return
        if line in END:
            return
        if line:
            yield line


def _table(names: list[str], records: list[dict[str, Any]]) -> str:
    rows = [names, *([escape(str(each[name])) for name in names] for each in records)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(names))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    )
