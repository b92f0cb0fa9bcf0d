"""The statements of a function, from Postgres' log with `log_statement = all`."""

import re
from dataclasses import dataclass
from pathlib import Path

from infra.database.roles import APP

_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \S+ \S+ \[(?P<pid>\d+)\] (?P<user>\S*) .*?"
    r"LOG:  (?:statement|execute (?P<name>[^:]+)): (?P<sql>.*)"
)
_TRANSACTION_CONTROL = re.compile(
    r"(BEGIN|START\s+TRANSACTION|COMMIT|END|ROLLBACK|ABORT|SAVEPOINT|RELEASE)\b", re.I
)
_BEGIN = re.compile(r"(BEGIN|START\s+TRANSACTION)\b", re.I)
#: Statements that connection pools and drivers send on their own.
_OVERHEAD = re.compile(
    r"(;?$|SELECT 1;?$|DISCARD\b|RESET\b|DEALLOCATE\b|SHOW\b|CLOSE ALL|UNLISTEN|SET\b"
    r"|SELECT pg_advisory_unlock_all|SELECT pg_catalog\.version|SELECT current_schema"
    r"|SELECT version\(\))|.*\bpg_(catalog\.)?(type|attribute|settings)\b",
    re.I | re.S,
)
#: Statements that leave state for the next client of a server connection.
_SESSION_STATE = re.compile(
    r"^\s*SET\s+(?!LOCAL\b|TRANSACTION\b|CONSTRAINTS\b)|\bset_config\s*\([^)]*,\s*(false|'f')"
    r"|^\s*LISTEN\b|\bpg_(try_)?advisory_lock(_shared)?\s*\(|\bCREATE\s+TEMP|^\s*PREPARE\b"
    r"|\bWITH\s+HOLD\b",
    re.I,
)
_TABLE = re.compile(r"\b(?:FROM|JOIN|INTO|UPDATE)\s+(?:ONLY\s+)?([\w.\"]+)", re.I)


@dataclass
class Statement:
    """An executed statement. `name` is the prepared statement's name, or "" if it is unnamed."""

    pid: int
    name: str
    sql: str

    @property
    def begins_transaction(self) -> bool:
        return bool(_BEGIN.match(self.sql.lstrip()))

    @property
    def is_work(self) -> bool:
        """Whether the function's own code, rather than its driver, seems to have sent it."""
        sql = self.sql.strip()
        return not _TRANSACTION_CONTROL.match(sql) and not _OVERHEAD.match(sql)

    @property
    def sets_session_state(self) -> bool:
        return bool(_SESSION_STATE.search(self.sql))

    @property
    def tables(self) -> set[str]:
        """All identifiers that may be table names, in lower case."""
        return {name.replace('"', "").lower() for name in _TABLE.findall(self.sql)}


class StatementLog:
    """Reads the statements that the application has executed since `mark` was called."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def mark(self) -> None:
        self._offset = self._path.stat().st_size

    def since_mark(self) -> list[Statement]:
        with self._path.open("rb") as file:
            file.seek(self._offset)
            return parse(file.read().decode(errors="replace"))


def parse(log: str) -> list[Statement]:
    """Return the application's statements, whose continuation lines begin with a tab."""
    statements: list[Statement] = []
    current: Statement | None = None
    for line in log.splitlines():
        if line.startswith("\t"):
            if current is not None:
                current.sql += f"\n{line[1:]}"
            continue
        current = None
        if (match := _LINE.match(line)) and match["user"] == APP:
            name = (match["name"] or "<unnamed>").partition("/")[0]
            name = "" if name == "<unnamed>" else name
            current = Statement(int(match["pid"]), name, match["sql"])
            statements.append(current)
    return statements
