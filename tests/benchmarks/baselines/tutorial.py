"""The engine that a common introduction to SQLAlchemy's async engine sets up, with FastAPI.

Its engine, session factory and query are as printed there (pool of 10 + 5, `pool_pre_ping`,
`async with AsyncSessionLocal()`); FastAPI with a `response_model`, Mangum as its documentation has
it. Changed so that it is right behind PgBouncer in transaction pooling: both statement caches are 0
("Prepared Statement Cache" and "Disabling the PostgreSQL JIT …" in SQLAlchemy's asyncpg dialect;
"pgbouncer" in asyncpg's FAQ). And `lifespan="off"`: otherwise Mangum would end the engine with each
invocation.
"""

import asyncio

from fastapi import FastAPI, HTTPException
from mangum import Mangum
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tests.benchmarks.baselines import login
from tests.benchmarks.baselines.tables import Order, OrderOut

parts = login()
engine = create_async_engine(
    URL.create(
        "postgresql+asyncpg",
        parts["user"],
        parts["password"],
        parts["host"],
        parts["port"],
        parts["database"],
    ),
    pool_size=10,
    max_overflow=5,
    pool_timeout=30,
    pool_recycle=1800,
    pool_pre_ping=True,
    echo=False,
    connect_args={"ssl": False, "statement_cache_size": 0, "prepared_statement_cache_size": 0},
)
AsyncSessionLocal = async_sessionmaker(bind=engine, class_=AsyncSession, expire_on_commit=False)


async def get_order(order_id: int) -> Order | None:
    async with AsyncSessionLocal() as session:
        result = await session.execute(select(Order).where(Order.id == order_id))
        return result.scalars().first()


app = FastAPI()


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int) -> Order:
    order = await get_order(order_id)
    if order is None:
        raise HTTPException(404)
    return order


asyncio.set_event_loop(asyncio.new_event_loop())  # since 3.12 no thread has one by itself
handler = Mangum(app, lifespan="off")
