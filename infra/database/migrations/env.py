"""Alembic's environment: one asyncpg connection, made as the handler makes its own.

On the command line the settings come from `DB_*`; `DB_USER` must be the owner role, and
`DB_PORT` Postgres itself rather than the pooler.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from handler.engine import create_engine
from handler.orders import Base
from handler.settings import Settings, load


def run(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def online(settings: Settings) -> None:
    engine = create_engine(settings)
    # DDL in one transaction: a migration happens as a whole or not at all.
    transactional = engine.execution_options(isolation_level="READ COMMITTED")
    try:
        async with transactional.connect() as connection:
            await connection.run_sync(run)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
else:
    asyncio.run(online(context.config.attributes.get("settings") or load()))
