"""asyncpg's pool, made once while the module is imported, as blog posts on Lambda have it."""

import asyncio
from typing import Any

import asyncpg

from tests.benchmarks.baselines import login
from tests.examine.recipes.service import QUERY, answer, order_id

loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)


async def create_pool() -> "asyncpg.Pool[Any]":
    made: asyncpg.Pool[Any] = await asyncpg.create_pool(**login(), min_size=1, max_size=10)
    return made


pool = loop.run_until_complete(create_pool())


async def read(number: int) -> dict[str, Any] | None:
    async with pool.acquire() as connection:
        row = await connection.fetchrow(f"{QUERY}$1", number)
    return None if row is None else dict(row)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return answer(loop.run_until_complete(read(order_id(event))))
