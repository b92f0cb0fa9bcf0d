"""SQLAlchemy's recipe for PgBouncer: NullPool, and a name of its own for each prepared statement.

From its asyncpg dialect's documentation, "Prepared Statement Name with PGBouncer", with asyncpg's
own cache at 0 as asyncpg's FAQ has it; SQLAlchemy's at 0, because a connection lives for one
request. FastAPI, Mangum, the table and the query are the tutorial's.
"""

from uuid import uuid4

from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.baselines import tutorial

engine = create_async_engine(
    tutorial.engine.url,
    poolclass=NullPool,
    connect_args={
        "ssl": False,
        "statement_cache_size": 0,
        "prepared_statement_cache_size": 0,
        "prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__",
    },
)
tutorial.AsyncSessionLocal.configure(bind=engine)
handler = tutorial.handler
