"""The floor: asyncpg alone, one connection and one held prepared statement, no framework.

Prepared without a name (`statement_cache_size=0`, from asyncpg's FAQ on PgBouncer), so that it is
right in transaction pooling: one burst, one round trip.
"""

import asyncio
import json
from typing import Any

import asyncpg
from asyncpg.prepared_stmt import PreparedStatement

from tests.benchmarks.baselines import login

loop = asyncio.new_event_loop()
statement: "PreparedStatement[Any] | None" = None


async def read(order_id: int) -> str | None:
    global statement
    if statement is None:
        connection = await asyncpg.connect(**login(), statement_cache_size=0)
        statement = await connection.prepare(
            "SELECT id, customer_name, status FROM orders WHERE id=$1"
        )
    row = await statement.fetchrow(order_id)
    return None if row is None else json.dumps(dict(row))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    body = loop.run_until_complete(read(int(event["rawPath"].rpartition("/")[2])))
    headers = {"content-type": "application/json"}
    return {"statusCode": 200 if body else 404, "headers": headers, "body": body}
