"""Pytest plugin that registers a dialect as `postgresql+asyncpg` for SQLAlchemy's own tests.

The environment variable COMPLIANCE selects the dialect: `stock` (SQLAlchemy's), `stock pooled`
(SQLAlchemy's with its recipe for PgBouncer) or `ours` (the handler's dialect, with the handler's
connection options).
"""

import os
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.postgresql.asyncpg import PGDialect_asyncpg

from handler.warm.database import dialect
from handler.warm.database.connection import OPTIONS


class _Provisioned:
    """Load SQLAlchemy's test provisioning, which is otherwise sought in the subclass's module."""

    @classmethod
    def load_provisioning(cls) -> None:
        PGDialect_asyncpg.load_provisioning()  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped


class StockPooled(_Provisioned, PGDialect_asyncpg):
    """SQLAlchemy's dialect with its recipe for PgBouncer.

    The driver caches no prepared statements, and their names are unique.
    """

    supports_statement_cache = True  # of compiled SQL; not inherited

    def create_connect_args(self, url: URL) -> Any:
        arguments, options = super().create_connect_args(url)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped
        options["statement_cache_size"] = 0
        options["prepared_statement_name_func"] = lambda: f"__asyncpg_{uuid4()}__"
        return arguments, options


class Ours(_Provisioned, dialect.Dialect):
    """The handler's dialect, with the handler's connection options."""

    supports_statement_cache = True  # of compiled SQL; not inherited

    def create_connect_args(self, url: URL) -> Any:
        arguments, options = super().create_connect_args(url)  # type: ignore[no-untyped-call]  # SQLAlchemy's is untyped
        return arguments, options | OPTIONS


DIALECTS: dict[str, type[PGDialect_asyncpg]] = {
    "stock": PGDialect_asyncpg,
    "stock pooled": StockPooled,
    "ours": Ours,
}


def selected_dialect(environment: Mapping[str, str]) -> type[PGDialect_asyncpg]:
    """Return the dialect that COMPLIANCE names. Raises UsageError if it is not one of them."""
    name = environment.get("COMPLIANCE", "")
    if name not in DIALECTS:
        raise pytest.UsageError(f"COMPLIANCE is {name!r}; it must be one of {', '.join(DIALECTS)}")
    return DIALECTS[name]


@pytest.hookimpl(tryfirst=True)  # before SQLAlchemy's plugin reads the database URL
def pytest_configure() -> None:
    selected = selected_dialect(os.environ)
    registry.register("postgresql.asyncpg", selected.__module__, selected.__name__)
