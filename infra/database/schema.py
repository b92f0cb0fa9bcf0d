"""Runs the migrations and inserts sample rows, as the owner role.

`alembic upgrade head` does the same on the command line, with the owner in `DB_USER` and `DB_PASS`.
"""

import logging
from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from handler.warm.database.connection import connector
from handler.warm.database.engine import create_engine
from handler.warm.settings import Settings

log = logging.getLogger(__name__)
ROOT = Path(__file__).parents[2]
#: The command timeout for migrations, in seconds: creating an index may take hours.
LONG = 86_400.0
#: Sample rows for a workstation. A service may have no such file.
SAMPLE = Path(__file__).with_name("sample.sql")


def upgrade(config: Config) -> None:
    """Apply missing migrations; only log a warning if newer code has migrated the schema.

    That happens, for example, after CloudFormation has rolled back: migrations are not reverted.
    """
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    context = MigrationContext.configure(config.attributes["connection"])
    if unknown := set(context.get_current_heads()) - known:
        log.warning(
            "the schema is at revision %s, which this version does not know: newer code has "
            "migrated it; nothing to do",
            ", ".join(sorted(unknown)),
        )
        return
    command.upgrade(config, "head")


async def migrate(owner: Settings, run: Callable[[Config], None] = upgrade) -> None:
    """Migrate to the newest revision, or `run` another Alembic command, in one transaction."""
    config = Config(toml_file=ROOT / "pyproject.toml")

    def run_with(connection: Connection) -> None:
        config.attributes["connection"] = connection
        run(config)

    settings = owner.model_copy(update={"command_timeout": LONG})
    engine = create_engine(settings).execution_options(isolation_level="READ COMMITTED")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run_with)
    finally:
        await engine.dispose()


async def load_sample(owner: Settings) -> None:
    """Run `sample.sql`, if it exists. The file must not change a table that has rows."""
    if not SAMPLE.exists():
        return
    connection = await connector(owner)()
    try:
        # asyncpg cannot execute a file without any statement, so append one.
        await connection.execute(f"{SAMPLE.read_text()}\n; SELECT")
    finally:
        await connection.close()
