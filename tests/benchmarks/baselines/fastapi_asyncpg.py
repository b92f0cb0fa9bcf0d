"""asyncpg's pool in FastAPI behind Mangum, without SQLAlchemy.

Follows "Connection Pools" in asyncpg's documentation, with one connection, and with
`statement_cache_size=0`, which its FAQ recommends for PgBouncer. The pool belongs to an event loop,
so the first request creates it.
"""

import asyncio
from functools import cache
from typing import Any

import asyncpg
from fastapi import FastAPI, HTTPException
from mangum import Mangum

from tests.benchmarks.baselines import login
from tests.benchmarks.baselines.tables import OrderOut


@cache
def pool() -> "asyncpg.Pool[Any]":
    return asyncpg.create_pool(**login(), min_size=1, max_size=1, statement_cache_size=0)


app = FastAPI()


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int) -> dict[str, Any]:
    async with (await pool()).acquire() as connection:
        row = await connection.fetchrow(
            "SELECT id, customer_name, status FROM orders WHERE id = $1", order_id
        )
    if row is None:
        raise HTTPException(404)
    return dict(row)


asyncio.set_event_loop(asyncio.new_event_loop())  # for Mangum's get_event_loop()
handler = Mangum(app, lifespan="off")
