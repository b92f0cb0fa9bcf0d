"""SQLAlchemy's asyncpg dialect, which here asks the server nothing that it has said already."""

from typing import Any

from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

#: For an engine's URL.
NAME = "postgresql+asyncpg_told"


class Dialect(PGDialect_asyncpg):
    """At first SQLAlchemy asks four questions, eight of a cold start's thirteen round trips. The
    version and `standard_conforming_strings` Postgres tells each client at its login (PgBouncer
    passes both on); the schema is for reflection, which reads tables of `public`; the isolation
    level would be gone back to by an engine that names none, and ours does.
    """

    supports_statement_cache = True  # not inherited: without it each query is compiled anew

    def _get_server_version_info(self, connection: Any) -> tuple[int, ...]:
        return tuple(_driver(connection).get_server_version()[:3])

    def _set_backslash_escapes(self, connection: Any) -> None:
        told = _driver(connection).get_settings().standard_conforming_strings
        self._backslash_escapes = told == "off"

    def _get_default_schema_name(self, connection: Any) -> str:
        return "public"

    def get_default_isolation_level(self, dbapi_conn: Any) -> Any:
        return "READ COMMITTED"


def _driver(connection: Any) -> Any:
    return connection.connection.driver_connection


registry.register(NAME.replace("+", "."), __name__, Dialect.__name__)
