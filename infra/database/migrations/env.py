"""Alembic's environment: one asyncpg connection, made as the handler makes its own.

On the command line the settings come from `DB_*`: `DB_USER` must be the owner role, `DB_PORT`
Postgres itself rather than the pooler.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from handler.engine import create_engine
from handler.orders import Base
from handler.settings import load
from infra.database.schema import LONG


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def online() -> None:
    engine = create_engine(load(command_timeout=LONG)).execution_options(
        isolation_level="READ COMMITTED"
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (connection := context.config.attributes.get("connection")) is not None:
    run(connection)  # from infra.database.schema
else:
    asyncio.run(online())
