"""The responses of a warm process after a migration changed the type of a column.

Each column is changed to other types and back. A response must be correct or an error; a driver
with an outdated description of the column returns a wrong value.
"""

import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import asyncpg

from infra.local.examine import responses
from infra.local.examine.finding import Finding, UnknownError, conclude
from infra.local.examine.lab import Lab, wait_until_frozen
from infra.local.fleet import Fleet, InvocationResult

#: By Postgres' category of the original type (`pg_type.typcategory`).
NEW_TYPES = {
    "N": ["bigint", "integer", "real", "double precision", "numeric", "text"],
    "S": ["text", "character varying(200)", "bytea", "integer"],
    "B": ["integer", "text"],
    "D": ["timestamp with time zone", "timestamp without time zone", "date", "text"],
    "U": ["text", "bytea", "jsonb"],
}
TIME_LIMIT_S, FAST_TIME_LIMIT_S = 60.0, 15.0
COLUMNS = """
SELECT relname::text AS "table", attname::text AS name, format_type(atttypid, atttypmod) AS type,
  typcategory::text AS category, pg_get_expr(adbin, adrelid) AS "default"
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_type ON pg_type.oid = atttypid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname = ANY($1)
  AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND typcategory::text = ANY($2)
ORDER BY relname, attnum
"""
#: The columns of a table that an INSERT may contain.
WRITABLE = """
SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
WHERE attrelid = $1::text::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
"""


@dataclass
class Column:
    table: str
    name: str
    type: str
    category: str
    default: str | None


class Outcome(StrEnum):
    CORRECT = "right"
    ERROR = "errors"
    WRONG = "wrong"


async def column_types(lab: Lab) -> Finding:
    if not any(lab.baseline.are_stable):
        raise UnknownError("the responses differ each time, so wrong values cannot be detected")
    outcomes: Counter[Outcome] = Counter()
    example = ""
    deadline = time.monotonic() + (FAST_TIME_LIMIT_S if lab.inputs.fast else TIME_LIMIT_S)
    async with lab.admin() as admin, contextlib.aclosing(WarmProcess(lab)) as process:
        rows = await admin.fetch(COLUMNS, lab.baseline.tables, list(NEW_TYPES))
        changes = [
            (column, new_type)
            for column in [Column(**dict(row)) for row in rows]
            for new_type in NEW_TYPES[column.category]
            if new_type != column.type
        ]
        for column, new_type in changes:
            if time.monotonic() >= deadline:
                break
            if not await process.recovers():
                raise UnknownError("events fail after a column was changed and changed back")
            async with _changed(admin, column, new_type) as is_changed:
                if not is_changed:
                    continue
                outcome, response = await _invoke_and_judge(lab, process)
            outcomes[outcome] += 1
            if outcome is Outcome.WRONG and not example:
                change = f"{column.table}.{column.name} {column.type} → {new_type}"
                example = f"; {change}: {response}"
    if not outcomes:
        raise UnknownError("no column of a table that the function uses could be changed")
    counts = {outcome.value: outcomes[outcome] for outcome in Outcome}
    return conclude(
        not outcomes[Outcome.WRONG],
        f"{outcomes.total()} changes: {counts['right']} correct, {counts['errors']} errors,"
        f" {counts['wrong']} wrong{example}",
        changes=outcomes.total(),
        **counts,
    )


class WarmProcess:
    """A sandbox that serves all events with stable responses, and is replaced if it fails."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._indexes = [index for index, stable in enumerate(lab.baseline.are_stable) if stable]
        self._fleet: Fleet | None = None

    async def invoke(self) -> list[InvocationResult]:
        """Send each event, and wait until the sandbox is frozen."""
        if self._fleet is None:
            self._fleet = await self._lab.forked_fleet(self._lab.direct())
        results = [await self._fleet.invoke(self._lab.event(index)) for index in self._indexes]
        await wait_until_frozen(self._fleet)
        return results

    def incorrect(self, results: list[InvocationResult]) -> list[InvocationResult]:
        """Return those of `results` that differ from the baseline."""
        return [
            result
            for index, result in zip(self._indexes, results, strict=True)
            if not self._lab.is_correct(index, result)
        ]

    async def recovers(self) -> bool:
        """Return whether all responses are correct at the third attempt or in a new process."""
        for _ in range(3):
            if not self.incorrect(await self.invoke()):
                return True
        await self.aclose()
        return not self.incorrect(await self.invoke())

    async def aclose(self) -> None:
        if self._fleet is not None:
            await self._fleet.end()
            self._fleet = None


async def _invoke_and_judge(lab: Lab, process: WarmProcess) -> tuple[Outcome, str]:
    """Return the outcome after a change, and a response that is not correct."""
    results = await process.invoke()
    incorrect = process.incorrect(results)
    if not incorrect:
        return Outcome.CORRECT, ""
    response = responses.describe(incorrect[0])
    if all(map(responses.has_failed, incorrect)):
        return Outcome.ERROR, response
    # The change itself may alter the value: what a new process reads is correct.
    async with contextlib.aclosing(WarmProcess(lab)) as new_process:
        expected = await new_process.invoke()
    is_correct = all(
        responses.has_failed(result)
        or responses.are_equal(responses.content(new.payload), responses.content(result.payload))
        for new, result in zip(expected, results, strict=True)
    )
    return (Outcome.CORRECT if is_correct else Outcome.WRONG), response


@contextlib.asynccontextmanager
async def _changed(admin: Any, column: Column, new_type: str) -> AsyncIterator[bool]:
    """Change the column's type for the block, and then restore the column and its rows.

    Yield False if no conversion to the new type is possible.
    """
    table, name = f'public."{column.table}"', f'"{column.name}"'
    has_default = column.default is not None
    drop_default = f"ALTER {name} DROP DEFAULT, " if has_default else ""
    restore_default = f", ALTER {name} SET DEFAULT {column.default}" if has_default else ""
    await admin.execute("SET lock_timeout = '2s'; SET session_replication_role = replica")
    await admin.execute(
        f"CREATE SCHEMA IF NOT EXISTS examine; DROP TABLE IF EXISTS examine.saved;"
        f"CREATE TABLE examine.saved AS TABLE {table}"
    )
    writable = await admin.fetchval(WRITABLE, table)
    is_changed = False
    for conversion in (
        f"{name}::{new_type}",
        f"{name}::text::{new_type}",
        f"convert_to({name}::text, 'UTF8')::{new_type}",
    ):
        with contextlib.suppress(asyncpg.PostgresError):
            await admin.execute(
                f"ALTER TABLE {table} {drop_default}ALTER {name} TYPE {new_type} USING {conversion}"
            )
            is_changed = True
            break
    try:
        yield is_changed
    finally:
        if is_changed:
            # A conversion back could not restore what the new type cannot represent.
            await admin.execute(
                f"BEGIN; DELETE FROM {table};"  # noqa: S608  # names from the catalog
                f"ALTER TABLE {table} ALTER {name} TYPE {column.type} USING NULL::{column.type}"
                f"{restore_default};"
                f"INSERT INTO {table} ({writable}) OVERRIDING SYSTEM VALUE"
                f" SELECT {writable} FROM examine.saved; COMMIT"
            )
