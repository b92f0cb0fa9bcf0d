"""The models match the migrations, so that autogenerate finds only new changes."""

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Connection

from handler.orders import Base
from handler.warm.database.engine import create_engine
from infra.database import roles
from infra.local.stack import Stack


async def test_the_migrations_match_the_models(stack: Stack) -> None:
    def differences(connection: Connection) -> list[object]:
        return list(compare_metadata(MigrationContext.configure(connection), Base.metadata))

    owner = create_engine(stack.settings(user=roles.OWNER))
    try:
        async with owner.connect() as connection:
            assert await connection.run_sync(differences) == []
    finally:
        await owner.dispose()
