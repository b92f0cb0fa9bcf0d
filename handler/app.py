"""The HTTP surface: FastAPI routes.

Owns what a caller may ask and what is answered. Leaves queries to `orders` and everything but
success to `problems`. Add authentication here: this app lets anybody in.
"""

import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import FastAPI, Header, HTTPException, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field

from handler import engine, logs, orders, problems


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """For a host that lives on, such as uvicorn. Lambda's does not run it."""
    await engine.prewarm()
    yield
    await engine.dispose()


# An order is some 200 bytes; without a limit one request could take up the sandbox's memory.
app = FastAPI(title="Warm Engine", version="0.1.0", lifespan=lifespan, max_body_size=16 * 1024)
app.add_middleware(logs.note_who_asks_for_sql)  # 1 µs a request; a dependency would be 17
problems.install(app)

OrderId = Annotated[int, Path(ge=1, le=orders.MAX_ID)]
#: Postgres' text cannot hold NUL; lone surrogates pydantic refuses by itself.
NO_NUL = r"^[^\x00]*$"
Status = Annotated[str, Field(min_length=1, max_length=32, pattern=NO_NUL)]
IdempotencyKey = Annotated[str, Header(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]*$")]


class OrderIn(BaseModel):
    """An order to be placed."""

    model_config = ConfigDict(extra="forbid")

    customer_name: Annotated[str, Field(min_length=1, max_length=120, pattern=NO_NUL)]
    status: Status = "pending"


class OrderOut(BaseModel):
    """An order as callers see it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    customer_name: str
    status: str


class OrderPage(BaseModel):
    """Orders by id. `next` is the next page, relative to this one, or null after the last."""

    orders: list[OrderOut]
    next: str | None


@app.get("/orders/{order_id}", response_model=OrderOut, responses=problems.described(404, 422))
async def read_order(order_id: OrderId) -> orders.Order:
    order = await orders.find(order_id)
    if order is None:
        raise HTTPException(404, f"There is no order {order_id}.")
    return order


@app.get("/orders", response_model=OrderPage, responses=problems.described(422))
async def list_orders(
    status: Annotated[Status | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int, Query(ge=0, le=orders.MAX_ID)] = 0,
) -> dict[str, Any]:
    # One more than is shown tells whether there is a next page.
    found = await orders.page(status, after, limit + 1)
    if len(found) <= limit:
        return {"orders": found, "next": None}
    same = {} if status is None else {"status": status}
    following = urlencode({**same, "limit": limit, "after": found[limit - 1].id})
    return {"orders": found[:limit], "next": f"?{following}"}


_refusals = problems.described(400, 409, 413, 422)


@app.post("/orders", status_code=201, response_model=OrderOut, responses=_refusals)
async def place_order(
    order: OrderIn, response: Response, idempotency_key: IdempotencyKey
) -> dict[str, Any]:
    """Place an order once: a request whose answer was lost may be sent again with the same key."""
    body = order.model_dump()
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    placed = await orders.place(idempotency_key, digest, order.customer_name, order.status)
    if not placed.is_same_body:
        raise HTTPException(409, "That Idempotency-Key was used for another order. Use a new one.")
    if not placed.is_new:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"orders/{placed.order_id}"
    return {"id": placed.order_id, **body}


@app.get("/health")
async def health() -> dict[str, str]:
    """This runtime answers. Touches no database."""
    return {"status": "ok"}


@app.get("/ready", responses=problems.described())
async def ready() -> dict[str, str]:
    """This runtime answers and so does the database behind it."""
    await engine.ping()
    return {"status": "ready"}
