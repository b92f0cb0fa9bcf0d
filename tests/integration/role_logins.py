"""Logs in as the database roles, directly and through PgBouncer."""

import asyncpg
import pytest

from handler.warm.database.connection import connector
from infra.local.stack import Stack
from tests.conftest import PgConnection


async def connect(stack: Stack, role: str) -> PgConnection:
    return await connector(stack.settings(user=role))()


async def through_pooler(stack: Stack, password: str) -> str:
    """Log in to PgBouncer with `password` and return the user name."""
    connection = await connector(stack.settings(through=stack.pgbouncer, password=password))()
    try:
        return str(await connection.fetchval("SELECT current_user"))
    finally:
        await connection.close()


async def assert_forbidden(stack: Stack, role: str, statement: str) -> None:
    """Assert that the role has no right to execute the statement."""
    connection = await connect(stack, role)
    try:
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await connection.execute(statement)
    finally:
        await connection.close()
