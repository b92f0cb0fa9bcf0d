"""The most copied advice against the error "prepared statement … already exists".

`pool_pre_ping` is set and SQLAlchemy's own statement cache disabled, but not asyncpg's.
"""

from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.baselines import tutorial

engine = create_async_engine(
    tutorial.engine.url,
    pool_pre_ping=True,
    connect_args={"ssl": False, "prepared_statement_cache_size": 0},
)
tutorial.AsyncSessionLocal.configure(bind=engine)
handler = tutorial.handler
