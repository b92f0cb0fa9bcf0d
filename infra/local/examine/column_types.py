"""A migration that changes a column's type under a warm process: the right answer, an error, or a
wrong value."""

import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import asyncpg

from infra.local.examine import answers
from infra.local.examine.finding import Finding, UnknownError, decided
from infra.local.examine.lab import Lab, frozen
from infra.local.fleet import Fleet

#: By the category that Postgres has for a type (`pg_type.typcategory`).
TARGETS = {
    "N": ["bigint", "integer", "real", "double precision", "numeric", "text"],
    "S": ["text", "character varying(200)", "bytea", "integer"],
    "B": ["integer", "text"],
    "D": ["timestamp with time zone", "timestamp without time zone", "date", "text"],
    "U": ["text", "bytea", "jsonb"],
}
BUDGET_S, FAST_BUDGET_S = 60.0, 15.0
COLUMNS = """
SELECT relname::text AS "table", attname::text AS name, format_type(atttypid, atttypmod) AS type,
  typcategory::text AS category, attidentity <> '' AS is_identity,
  pg_get_expr(adbin, adrelid) AS "default"
FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid JOIN pg_type ON pg_type.oid = atttypid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE relnamespace = 'public'::regnamespace AND relkind = 'r' AND relname = ANY($1)
  AND attnum > 0 AND NOT attisdropped AND attgenerated = '' AND typcategory::text = ANY($2)
ORDER BY relname, attnum
"""
#: Those that a row can be written back to.
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
    is_identity: bool
    default: str | None

    @property
    def targets(self) -> list[str]:
        return [each for each in TARGETS[self.category] if each != self.type]


@dataclass
class Counts:
    changes: int = 0
    right: int = 0
    errors: int = 0
    wrong: int = 0
    example: str = ""


async def column_types(lab: Lab) -> Finding:
    indexes = [index for index, stable in enumerate(lab.stable) if stable]
    if not indexes:
        raise UnknownError("its answers differ each time, so a wrong value could not be told")
    async with lab.admin() as admin:
        rows = await admin.fetch(COLUMNS, lab.tables, list(TARGETS))
        columns = [Column(**dict(row)) for row in rows]
        counts = Counts()
        end = time.monotonic() + (FAST_BUDGET_S if lab.inputs.fast else BUDGET_S)
        process = WarmProcess(lab, indexes)
        async with contextlib.aclosing(process):
            for column in columns:
                for target in column.targets:
                    if time.monotonic() < end:
                        await _change(lab, admin, process, column, target, counts)
    if not counts.changes:
        raise UnknownError("no column of a table that it reads could be changed")
    return decided(
        not counts.wrong,
        f"{counts.changes} changes: {counts.right} right, {counts.errors} errors, {counts.wrong}"
        f" wrong{counts.example}",
        changes=counts.changes,
        right=counts.right,
        errors=counts.errors,
        wrong=counts.wrong,
    )


class WarmProcess:
    """A sandbox that has served every event and is right; a new one where the last is not."""

    def __init__(self, lab: Lab, indexes: list[int]) -> None:
        self._lab, self._indexes = lab, indexes
        self._fleet: Fleet | None = None

    async def ask(self) -> list[Any]:
        """An answer to each event."""
        if self._fleet is None:
            self._fleet = await self._start()
        found = [await self._fleet.invoke(self._lab.event(index)) for index in self._indexes]
        await frozen(self._fleet)  # nothing of it runs while a table is changed
        return found

    async def make_right(self) -> bool:
        """Whether it answers rightly, after three tries or as a new process."""
        for _ in range(3):
            found = await self.ask()
            if all(map(self._lab.is_right, self._indexes, found)):
                return True
        await self.aclose()
        return all(map(self._lab.is_right, self._indexes, await self.ask()))

    async def _start(self) -> Fleet:
        return self._lab.fleet(self._lab.direct(), fork_server=await self._lab.fork_server())

    async def aclose(self) -> None:
        if self._fleet is not None:
            await self._fleet.end()
            self._fleet = None


async def _change(
    lab: Lab,
    admin: Any,
    process: WarmProcess,
    column: Column,
    target: str,
    counts: Counts,
) -> None:
    if not await process.make_right():
        raise UnknownError("it does not serve any more once a column was changed and changed back")
    async with _changed(admin, column, target) as changed:
        if not changed:
            return
        found = await process.ask()
        counts.changes += 1
        wrong = [
            (index, answer)
            for index, answer in zip(process._indexes, found, strict=True)
            if not lab.is_right(index, answer)
        ]
        if not wrong:
            counts.right += 1
        elif all(answers.failed(answer) for _, answer in wrong):
            counts.errors += 1
        else:
            fresh = WarmProcess(lab, process._indexes)
            async with contextlib.aclosing(fresh):
                anew = await fresh.ask()
            right = all(
                answers.failed(answer)
                or answers.same(answers.content(answer.payload), answers.content(new.payload))
                for answer, new in zip(found, anew, strict=True)
            )
            counts.right += right
            counts.wrong += not right
            if not right and not counts.example:
                counts.example = (
                    f"; {column.table}.{column.name} {column.type} → {target}:"
                    f" {answers.described(wrong[0][1])}"
                )


@contextlib.asynccontextmanager
async def _changed(admin: Any, column: Column, target: str) -> AsyncIterator[bool]:
    """The column with another type, for the time of the block; then as it was, rows and all."""
    table, name = f'public."{column.table}"', f'"{column.name}"'
    restore_default = (
        f", ALTER {name} SET DEFAULT {column.default}" if column.default is not None else ""
    )
    await admin.execute("SET lock_timeout = '2s'; SET session_replication_role = replica")
    await admin.execute(
        f"CREATE SCHEMA IF NOT EXISTS examine; DROP TABLE IF EXISTS examine.saved;"
        f"CREATE TABLE examine.saved AS TABLE {table}"
    )
    writable = await admin.fetchval(WRITABLE, table)
    changed = False
    values = (f"{name}::{target}", f"{name}::text::{target}")
    for value in (*values, f"convert_to({name}::text, 'UTF8')::{target}"):
        with contextlib.suppress(asyncpg.PostgresError):
            drop_default = f"ALTER {name} DROP DEFAULT, " if column.default is not None else ""
            await admin.execute(
                f"ALTER TABLE {table} {drop_default}ALTER {name} TYPE {target} USING {value}"
            )
            changed = True
            break
    try:
        yield changed
    finally:
        if changed:
            # Not by a cast back, which loses what the other type could not hold.
            await admin.execute(
                f"BEGIN; DELETE FROM {table};"  # noqa: S608  # names from the catalog
                f"ALTER TABLE {table} ALTER {name} TYPE {column.type} USING NULL::{column.type}"
                f"{restore_default};"
                f"INSERT INTO {table} ({writable}) OVERRIDING SYSTEM VALUE"
                f" SELECT {writable} FROM examine.saved; COMMIT"
            )
