"""Alembic's environment: runs the migrations on one connection of the handler's engine.

On the command line, `DB_USER` must be the owner role and `DB_PORT` the port of Postgres, not of
PgBouncer.
"""

import asyncio

from alembic import context
from sqlalchemy import Connection

from handler.orders import Base
from handler.warm.database.engine import create_engine
from handler.warm.settings import load_settings
from infra.database.schema import LONG


def migrate(connection: Connection) -> None:
    context.configure(connection=connection, target_metadata=Base.metadata)
    with context.begin_transaction():
        context.run_migrations()


async def connect_and_migrate() -> None:
    engine = create_engine(load_settings(command_timeout=LONG)).execution_options(
        isolation_level="READ COMMITTED"
    )
    try:
        async with engine.begin() as connection:
            await connection.run_sync(migrate)
    finally:
        await engine.dispose()


if context.is_offline_mode():
    context.configure(dialect_name="postgresql", target_metadata=Base.metadata, literal_binds=True)
    with context.begin_transaction():
        context.run_migrations()
elif (connection := context.config.attributes.get("connection")) is not None:
    migrate(connection)  # from infra.database.schema
else:
    asyncio.run(connect_and_migrate())
