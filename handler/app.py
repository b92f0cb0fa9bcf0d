"""The HTTP routes and their request and response models.

The app accepts every request: authenticate callers at the gateway, or add authentication here.
"""

import hashlib
import json
import os
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Header, HTTPException, Path, Query, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from handler import orders
from handler.warm import (
    add_documentation,
    caller,
    dispose,
    install,
    ping,
    prewarm,
    problem_responses,
)


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[None]:
    """Open and close the engine on a long-running host such as uvicorn; not used on Lambda."""
    await prewarm()
    yield
    await dispose()


app = FastAPI(title="Warm Engine", version="1", lifespan=lifespan, docs_url=None, redoc_url=None)
# An order is about 200 bytes; without a limit one request could exhaust the sandbox's memory.
install(app, max_body_size=16 * 1024)
# The interactive pages load scripts from a CDN, so on Lambda they are off unless API_DOCS=on.
# `/openapi.json` is always served.
if os.environ.get("API_DOCS", "" if "AWS_LAMBDA_FUNCTION_NAME" in os.environ else "on") == "on":
    add_documentation(app)


def _canonical(text: str) -> str:
    """Reject spellings that `int` accepts, such as `1_0`, `01` or `+1`: an order has one URL."""
    if not re.fullmatch(r"-?(0|[1-9][0-9]*)", text):
        raise PydanticCustomError(
            "canonical", "Input should be an integer in ASCII digits without leading zeros"
        )
    return text


OrderId = Annotated[int, Path(ge=1, le=orders.MAX_ID), BeforeValidator(_canonical)]
#: Postgres text cannot store NUL. Pydantic already rejects lone surrogates.
NO_NUL = r"^[^\x00]*$"
Status = Annotated[str, Field(min_length=1, max_length=32, pattern=NO_NUL)]
IdempotencyKey = Annotated[str, Header(min_length=1, max_length=255, pattern=r"^[\x20-\x7e]*$")]


class OrderIn(BaseModel):
    """The body of `POST /orders`."""

    model_config = ConfigDict(extra="forbid")

    customer_name: Annotated[str, Field(min_length=1, max_length=120, pattern=NO_NUL)]
    status: Status = "pending"


class OrderOut(BaseModel):
    """An order in a response."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    customer_name: str
    status: str


class OrderPage(BaseModel):
    """Orders by id. `next` is the relative URL of the next page, null on the last page."""

    orders: list[OrderOut]
    next: str | None


@app.get("/orders/{order_id}", response_model=OrderOut, responses=problem_responses(404, 422))
async def read_order(order_id: OrderId) -> orders.Order:
    order = await orders.find(order_id)
    if order is None:
        raise HTTPException(404, f"There is no order {order_id}.")
    return order


@app.get("/orders", response_model=OrderPage, responses=problem_responses(422))
async def list_orders(
    status: Annotated[Status | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    after: Annotated[int, Query(ge=0, le=orders.MAX_ID)] = 0,
) -> dict[str, Any]:
    # One row more than the page shows whether there is a next page.
    rows = await orders.page(status, after, limit + 1)
    if len(rows) <= limit:
        return {"orders": rows, "next": None}
    filters = {} if status is None else {"status": status}
    following = urlencode({"after": rows[limit - 1].id, "limit": limit, **filters})
    return {"orders": rows[:limit], "next": f"?{following}"}


_refusals = problem_responses(400, 409, 413, 422)


@app.post("/orders", status_code=201, response_model=OrderOut, responses=_refusals)
async def place_order(
    order: OrderIn,
    response: Response,
    idempotency_key: IdempotencyKey,
    identity: Annotated[str | None, Depends(caller)],
) -> dict[str, Any]:
    """Place an order once: after a lost response, repeat the request with the same key."""
    body = order.model_dump()
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
    placed = await orders.place(identity or "", idempotency_key, digest, **body)
    if not placed.is_same_body:
        raise HTTPException(409, "This Idempotency-Key belongs to another order. Use a new key.")
    if not placed.is_new:
        response.headers["Idempotency-Replayed"] = "true"
    response.headers["Location"] = f"orders/{placed.order_id}"
    return {"id": placed.order_id, **body}


@app.get("/health")
async def health() -> dict[str, str]:
    """Report that the function responds; does not use the database."""
    return {"status": "ok"}


@app.get("/ready", responses=problem_responses())
async def ready() -> dict[str, str]:
    """Report that the function and its database respond."""
    await ping()
    return {"status": "ready"}
