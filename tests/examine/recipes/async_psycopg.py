"""SQLAlchemy's async engine with psycopg 3, behind FastAPI and Mangum.

The tutorial with the URL `postgresql+psycopg://` and the pool's defaults.
"""

from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.baselines import tutorial
from tests.examine.recipes.service import url

engine = create_async_engine(url("postgresql+psycopg", sslmode="disable"))
tutorial.AsyncSessionLocal.configure(bind=engine)
handler = tutorial.handler
