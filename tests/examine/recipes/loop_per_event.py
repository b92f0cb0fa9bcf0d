"""`asyncio.run` in the handler, and the engine in a global variable.

This is the shortest way to call async code from Lambda.
"""

import asyncio
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.examine.recipes.service import QUERY, order_id, response, url

engine = create_async_engine(url("postgresql+asyncpg"), connect_args={"ssl": False})


async def read(order_id: int) -> dict[str, Any] | None:
    async with engine.connect() as connection:
        result = await connection.execute(text(f"{QUERY}:id"), {"id": order_id})
        row = result.mappings().first()
    return None if row is None else dict(row)


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    return response(asyncio.run(read(order_id(event))))
