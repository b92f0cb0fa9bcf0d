"""The frameworks only: FastAPI, Mangum and the ORM at one round trip, and nothing else.

No log line, deadline, problem responses, second try or look at the socket. What it costs is the
frameworks' own; what this handler costs beyond it is what it does for that.
"""

import asyncio
import gc

gc.disable()  # as `handler.main` does, and why is said there

from typing import Any

import asyncpg
from fastapi import FastAPI, HTTPException
from mangum import Mangum
from sqlalchemy import Integer, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from tests.benchmarks.baselines import login
from tests.benchmarks.baselines.tables import Order, OrderOut


async def connect() -> "asyncpg.Connection[Any]":
    made: asyncpg.Connection[Any] = await asyncpg.connect(**login(), statement_cache_size=0)
    return made


engine = create_async_engine(
    "postgresql+asyncpg://",
    async_creator=connect,
    pool_size=1,
    max_overflow=0,
    isolation_level="AUTOCOMMIT",
)
BY_ID = select(Order).where(Order.id == bindparam("id", type_=Integer))
app = FastAPI()


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int) -> Order:
    def find(session: Session) -> Order | None:
        with session:
            return session.scalar(BY_ID, {"id": order_id})

    order = await AsyncSession(engine, expire_on_commit=False).run_sync(find)
    if order is None:
        raise HTTPException(404)
    return order


asyncio.set_event_loop(asyncio.new_event_loop())
handler = Mangum(app, lifespan="off")
gc.freeze()
gc.enable()
