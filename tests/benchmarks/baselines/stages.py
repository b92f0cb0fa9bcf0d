"""The stages between the driver and `frameworks_only`, each on top of the one before it.

`bare_asyncpg` is the first stage and `frameworks_only` the last: FastAPI behind Mangum.
"""

import asyncio
import json
from typing import Any

from sqlalchemy import Integer, bindparam, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.benchmarks.baselines.frameworks_only import BY_ID, app, engine
from tests.benchmarks.baselines.tables import Order

loop = asyncio.get_event_loop()  # that of `frameworks_only`
SELECT = select(Order.__table__).where(Order.id == bindparam("id", type_=Integer))


def core(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """SQLAlchemy's Core: a connection of the pool and a compiled statement."""

    async def read() -> dict[str, Any]:
        async with engine.connect() as connection:
            row = (await connection.execute(SELECT, {"id": _order_id(event)})).mappings().one()
        return dict(row)

    return _answer(json.dumps(loop.run_until_complete(read())))


def orm(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """The ORM: a session and a mapped object."""

    def find(session: Session) -> Order:
        with session:
            return session.scalars(BY_ID, {"id": _order_id(event)}).one()

    order = loop.run_until_complete(AsyncSession(engine, expire_on_commit=False).run_sync(find))
    columns = {"id": order.id, "customer_name": order.customer_name, "status": order.status}
    return _answer(json.dumps(columns))


def fastapi(event: dict[str, Any], context: Any) -> dict[str, Any]:
    """FastAPI's routing, validation and response, called as a server calls it."""
    body = b""

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal body
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "path": event["rawPath"],
        "query_string": b"",
        "headers": [(b"accept", b"application/json")],
    }
    loop.run_until_complete(app(scope, receive, send))
    return _answer(body.decode())


def _order_id(event: dict[str, Any]) -> int:
    return int(event["rawPath"].rpartition("/")[2])


def _answer(body: str) -> dict[str, Any]:
    return {"statusCode": 200, "headers": {"content-type": "application/json"}, "body": body}
