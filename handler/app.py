"""The HTTP surface: FastAPI routes and problem responses (RFC 9457).

Owns what a caller sees. Leaves queries to `orders` and which failure is which to `failures`.
"""

from http import HTTPStatus
from typing import Annotated

from fastapi import FastAPI, HTTPException, Path, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from starlette.exceptions import HTTPException as StarletteHTTPException

from handler import engine, failures, orders

app = FastAPI(title="Warm Engine", version="0.1.0")

OrderId = Annotated[int, Path(ge=1, le=orders.MAX_ID)]


class OrderOut(BaseModel):
    """An order as callers see it."""

    model_config = ConfigDict(from_attributes=True)

    id: int
    customer_name: str
    status: str


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: OrderId) -> orders.Order:
    order = await orders.find(order_id)
    if order is None:
        raise HTTPException(HTTPStatus.NOT_FOUND, f"There is no order {order_id}.")
    return order


@app.get("/health")
async def health() -> dict[str, str]:
    """This runtime answers. Touches no database."""
    return {"status": "ok"}


@app.get("/ready")
async def ready() -> dict[str, str]:
    """This runtime answers and so does the database behind it."""
    await engine.ping()
    return {"status": "ready"}


PROBLEM = "application/problem+json"


def problem(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    body = {"title": HTTPStatus(status).phrase, "status": status, "detail": detail}
    return JSONResponse(body, status, headers, media_type=PROBLEM)


@app.exception_handler(StarletteHTTPException)
async def _http_error(_: Request, error: StarletteHTTPException) -> JSONResponse:
    return problem(error.status_code, error.detail, dict(error.headers or {}))


@app.exception_handler(RequestValidationError)
async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
    faults = (f"{each['loc'][-1]}: {each['msg']}" for each in error.errors())
    return problem(HTTPStatus.UNPROCESSABLE_ENTITY, "; ".join(faults))


async def _database_error(_: Request, error: Exception) -> JSONResponse:
    failure = failures.classify(error)
    headers = {} if failure.retry_after is None else {"Retry-After": str(failure.retry_after)}
    return problem(failure.status, "The database is not available.", headers)


for _failure in failures.DatabaseFailure:
    app.add_exception_handler(_failure, _database_error)
