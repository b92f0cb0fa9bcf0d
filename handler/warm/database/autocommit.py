"""Autocommit: each statement commits by itself, and what needs a transaction is refused.

Why, and what it saves: docs/decisions/autocommit.md.
"""

import re
from collections.abc import Callable
from typing import Any, NoReturn, TypeVar

from sqlalchemy import Engine, TextClause, event, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session, SessionTransaction

T = TypeVar("T")
#: Transaction control, and row locks, which would be released at once. A SELECT inside another
#: statement is allowed to lock rows.
_NEEDS_TRANSACTION = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*"
    r"(?:(BEGIN|START|COMMIT|END|ABORT|ROLLBACK|SAVEPOINT|RELEASE|SET\s+(?:LOCAL|TRANSACTION))\b"
    r"|SELECT\b.*\b(FOR\s+(?:NO\s+KEY\s+)?UPDATE|FOR\s+(?:KEY\s+)?SHARE)\b)",
    re.IGNORECASE | re.DOTALL,
)


def run_in_autocommit(engine: Engine, work: Callable[[Session], T]) -> T:
    """Call `work` with a session on a connection in autocommit, and return its result.

    Raises InvalidRequestError for what needs a transaction.
    """
    with engine.connect() as connection:
        adapter: Any = connection.connection.dbapi_connection
        if is_asyncpg := hasattr(adapter, "autocommit"):
            # Set before SQLAlchemy begins a transaction. The execution option has the same effect,
            # but takes a tenth of a warm request's CPU.
            adapter.autocommit = True
        else:  # another driver, as in a test on SQLite
            connection.execution_options(isolation_level="AUTOCOMMIT")
        try:
            with AutocommitSession(connection, expire_on_commit=False) as session:
                result = work(session)
                if session.new or session.dirty or session.deleted:
                    _refuse("work that ends with unflushed changes, which would be lost,")
                if is_asyncpg and adapter.driver_connection.is_in_transaction():
                    connection.invalidate()
                    _refuse("BEGIN")
                return result
        finally:
            if is_asyncpg:
                adapter.autocommit = False


def _refuse(operation: str) -> NoReturn:
    raise InvalidRequestError(
        f"{operation} is not possible with autocommit=True, without a transaction: use run(work)"
    )


def _check(statement: Any, parameters: Any) -> None:
    inner = getattr(statement, "element", statement)  # the one that from_statement() wraps
    if getattr(inner, "_for_update_arg", None) is not None:
        _refuse("with_for_update")
    is_orm = getattr(statement, "_propagate_attrs", {}).get("compile_state_plugin") == "orm"
    if is_orm and isinstance(parameters, (list, tuple)) and len(parameters) > 1:
        _refuse("a list of several rows, which may become several statements,")
    if isinstance(statement, TextClause) and (match := _NEEDS_TRANSACTION.match(statement.text)):
        _refuse(" ".join((match[1] or match[2]).upper().split()))


class AutocommitSession(Session):
    """A session without transactions: it cannot begin one or roll back."""

    def begin(self, nested: bool = False) -> SessionTransaction:
        _refuse("begin()")

    def begin_nested(self) -> SessionTransaction:
        _refuse("begin_nested()")

    def rollback(self) -> None:
        _refuse("rollback()")

    def execute(self, statement: Any, params: Any = None, **options: Any) -> Any:
        _check(statement, params)
        return super().execute(statement, params, **options)

    def scalar(self, statement: Any, params: Any = None, **options: Any) -> Any:
        _check(statement, params)
        return super().scalar(statement, params, **options)

    def scalars(self, statement: Any, params: Any = None, **options: Any) -> Any:
        _check(statement, params)
        return super().scalars(statement, params, **options)


for _bulk in ("bulk_save_objects", "bulk_insert_mappings", "bulk_update_mappings"):
    setattr(AutocommitSession, _bulk, lambda *_, name=_bulk, **__: _refuse(f"{name}()"))


@event.listens_for(AutocommitSession, "before_flush")
def _refuse_flush_of_several_rows(session: Session, *_: Any) -> None:
    """Refuse to flush several rows: if the second failed, the first would stay committed."""
    changed = [*session.new, *session.deleted, *filter(session.is_modified, session.dirty)]
    if sum(_rows_of(instance, instance in session.deleted) for instance in changed) > 1:
        _refuse("flush() of several rows")


def _rows_of(instance: Any, deleted: bool) -> int:
    """Estimate the rows that a flush writes: one per table, and one per changed relationship."""
    state = inspect(instance)
    related = [link.key for link in state.mapper.relationships if not link.viewonly]
    if deleted:
        return len(state.mapper.tables) + len(related)  # their foreign keys may be set to NULL
    changed = [key for key in related if state.attrs[key].history.has_changes()]
    return len(state.mapper.tables) + len(changed)
