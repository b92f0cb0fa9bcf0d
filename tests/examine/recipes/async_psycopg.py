"""SQLAlchemy's async engine on psycopg 3, behind FastAPI and Mangum: its documentation's
`postgresql+psycopg://` in place of the tutorial's driver, with the pool's defaults."""

from sqlalchemy.ext.asyncio import create_async_engine

from tests.benchmarks.baselines import tutorial
from tests.examine.recipes.service import url

engine = create_async_engine(url("postgresql+psycopg", sslmode="disable"))
tutorial.AsyncSessionLocal.configure(bind=engine)
handler = tutorial.handler
