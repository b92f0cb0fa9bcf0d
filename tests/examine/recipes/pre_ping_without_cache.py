"""The answer to "prepared statement … already exists" that is copied most: `pool_pre_ping` and
SQLAlchemy's own cache at 0, with asyncpg's as it is."""

from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.baselines import tutorial

engine = create_async_engine(
    tutorial.engine.url,
    pool_pre_ping=True,
    connect_args={"ssl": False, "prepared_statement_cache_size": 0},
)
tutorial.AsyncSessionLocal.configure(bind=engine)
handler = tutorial.handler
