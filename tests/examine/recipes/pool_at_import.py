"""asyncpg's pool, created once during the import, as blog posts on Lambda recommend."""

import asyncio
from typing import Any

import asyncpg

from tests.benchmarks.baselines import login
from tests.examine.recipes.service import QUERY, order_id, response

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


async def create_pool() -> "asyncpg.Pool[Any]":
    pool: asyncpg.Pool[Any] = await asyncpg.create_pool(**login(), min_size=1, max_size=10)
    return pool


pool = loop.run_until_complete(create_pool())


async def read(order_id: int) -> dict[str, Any] | None:
    async with pool.acquire() as connection:
        row = await connection.fetchrow(f"{QUERY}$1", order_id)
    return None if row is None else dict(row)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return response(loop.run_until_complete(read(order_id(event))))
