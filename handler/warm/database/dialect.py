"""SQLAlchemy's asyncpg dialect without the queries of the first connection."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg, PGExecutionContext_asyncpg
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.util import await_only

from handler.warm.database import cancellation

#: The dialect in an engine's URL.
NAME = "postgresql+asyncpg_noprobe"

#: Undefined type, datatype mismatch, cannot coerce, undefined function: after a migration the
#: parameters of a prepared statement still have the old types.
_PARAMETERS_CHANGED = {"42704", "42804", "42846", "42883"}


class _Context(PGExecutionContext_asyncpg):
    def handle_dbapi_exception(self, e: Any) -> None:
        super().handle_dbapi_exception(e)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped
        if getattr(e, "sqlstate", None) in _PARAMETERS_CHANGED:
            self.dialect._invalidate_schema_cache()  # type: ignore[attr-defined]  # asyncpg's has it


class Dialect(PGDialect_asyncpg):
    """The stock dialect without four queries, which are eight of a cold start's 13 round trips.

    Postgres reports its version and `standard_conforming_strings` at login, also through PgBouncer.
    The default schema is queried when it is first read. After a transaction a connection returns to
    the isolation level of the engine or else of the role. See docs/decisions/dialect-shortcuts.md.
    """

    supports_statement_cache = True  # not inherited; without it every query is compiled again
    execution_ctx_cls = _Context
    _is_initializing = False
    _latest: Any = None
    _schema: str | None = None

    def on_connect(self) -> Callable[[Any], None]:
        prepare: Callable[[Any], None] = super().on_connect()  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped

        def connect(connection: Any) -> None:
            self._latest = connection
            prepare(connection)

        return connect

    def _get_server_version_info(self, connection: Any) -> tuple[int, ...]:
        version = _driver(connection).get_server_version()
        # asyncpg parses 18.4 as 18.0.4.
        return (version.major, version.micro) if version.major >= 10 else tuple(version[:3])

    def _set_backslash_escapes(self, connection: Any) -> None:
        reported = _driver(connection).get_settings().standard_conforming_strings
        self._backslash_escapes = reported == "off"

    def initialize(self, connection: Any) -> None:
        self._is_initializing = True
        super().initialize(connection)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped
        self._is_initializing = False

    def _get_default_schema_name(self, connection: Any) -> Any:
        if self._is_initializing:
            return None
        return super()._get_default_schema_name(connection)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped

    @property
    def default_schema_name(self) -> str | None:
        """Query the schema at the first read (two round trips); None without a connection."""
        if self._schema is None and self._latest is not None:
            self._schema = await_only(_current_schema(self._latest))
        return self._schema

    @default_schema_name.setter
    def default_schema_name(self, name: str | None) -> None:
        self._schema = name

    def do_begin(self, dbapi_connection: Any) -> None:
        """Send BEGIN now instead of with the first statement, so that a lost connection is detected
        and replaced before the caller's work begins."""
        adapter = dbapi_connection.dbapi_connection
        # A `connect` listener that executes a statement has begun a transaction already.
        if not adapter.autocommit and adapter._transaction is None:
            await_only(adapter._start_transaction())

    def do_execute(self, cursor: Any, statement: str, parameters: Any, context: Any = None) -> None:
        cancellation.raise_if_over()
        super().do_execute(cursor, statement, parameters, context)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped

    def do_commit(self, dbapi_connection: Any) -> None:
        """Commit if the transaction is still open and the deadline has not passed."""
        adapter = dbapi_connection.dbapi_connection
        if adapter._transaction is not None:
            cancellation.raise_if_over()
            if not adapter.driver_connection.is_in_transaction():
                raise InvalidRequestError(
                    "a statement of the work ended its transaction: use run(work) without COMMIT "
                    "or ROLLBACK"
                )
        super().do_commit(dbapi_connection)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        level = self._on_connect_isolation_level
        return "READ COMMITTED" if level in (None, "AUTOCOMMIT") else level

    def reset_isolation_level(self, dbapi_conn: Any) -> None:
        if self._on_connect_isolation_level is None:
            dbapi_conn.set_isolation_level(None)  # BEGIN without a level: the role's
        else:
            super().reset_isolation_level(dbapi_conn)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped


def _driver(connection: Any) -> Any:
    return connection.connection.driver_connection


async def _current_schema(connection: Any) -> str | None:
    async with connection._execute_mutex:
        name: str | None = await connection._connection.fetchval("SELECT current_schema()")
    return name


registry.register(NAME.replace("+", "."), __name__, Dialect.__name__)
