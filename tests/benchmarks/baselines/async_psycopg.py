"""psycopg 3 through SQLAlchemy's async engine, with FastAPI and Mangum.

The engine of SQLAlchemy's psycopg dialect with the pool's defaults, and `prepare_threshold=None`
from psycopg's "Using prepared statements with PgBouncer", so that it is right in transaction
pooling. Apart from the driver it is `tutorial` without its ping.
"""

import asyncio

from fastapi import FastAPI, HTTPException
from mangum import Mangum
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import async_sessionmaker, create_async_engine

from tests.benchmarks.baselines import login
from tests.benchmarks.baselines.tables import Order, OrderOut

parts = login()
engine = create_async_engine(
    URL.create(
        "postgresql+psycopg",
        parts["user"],
        parts["password"],
        parts["host"],
        parts["port"],
        parts["database"],
        query={"sslmode": "disable"},
    ),
    connect_args={"prepare_threshold": None},
)
AsyncSessionLocal = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int) -> Order:
    async with AsyncSessionLocal() as session:
        order = await session.scalar(select(Order).where(Order.id == order_id))
    if order is None:
        raise HTTPException(404)
    return order


asyncio.set_event_loop(asyncio.new_event_loop())  # since 3.12 no thread has one by itself
handler = Mangum(app, lifespan="off")
