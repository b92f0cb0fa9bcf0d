"""A FastAPI service with psycopg 3 that has every property, without this project's engine.

The remedies of docs/examine.md in full, to be copied: it imports nothing from this project. `run`
may repeat its work, so use it only for reads and for writes with an idempotency key.
"""

import asyncio
import hashlib
import http.client
import os
import select as sockets
import signal
import threading
from collections.abc import Awaitable, Callable
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, HTTPException
from fastapi.responses import JSONResponse
from mangum import Mangum
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy import URL, FetchedValue, event, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import DBAPIError, DisconnectionError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from starlette.types import ASGIApp, Receive, Scope, Send

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_name: Mapped[str]
    status: Mapped[str] = mapped_column(default="pending")


class OrderRequest(Base):
    """A used idempotency key, with the id of its order, which the database assigns."""

    __tablename__ = "order_requests"

    key: Mapped[str] = mapped_column(primary_key=True)
    body_sha256: Mapped[str]
    order_id: Mapped[int] = mapped_column(server_default=FetchedValue())


class OrderIn(BaseModel):
    customer_name: str = Field(min_length=1, max_length=120)


class OrderOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    customer_name: str
    status: str


# `pooling`: no named statements. `round_trips`: one connection, which is kept and not pinged.
engine = create_async_engine(
    URL.create(
        "postgresql+psycopg",
        os.environ["DB_USER"],
        os.environ["DB_PASS"],
        os.environ["DB_HOST"],
        int(os.environ["DB_PORT"]),
        os.environ["DB_NAME"],
        query={"sslmode": "disable"},  # of the lab; on AWS: verify-full
    ),
    pool_size=1,
    max_overflow=0,
    connect_args={"prepare_threshold": None},
)
Session = async_sessionmaker(engine, expire_on_commit=False)


# `thaw`: the socket of an idle connection becomes readable when the server closes it. With asyncpg
# the socket is `driver_connection._transport.get_extra_info("socket")`.
@event.listens_for(engine.sync_engine, "checkout")
def check(connection: Any, record: Any, proxy: Any) -> None:
    poll = sockets.poll()
    poll.register(connection.driver_connection.fileno(), sockets.POLLIN)
    if poll.poll(0):
        raise DisconnectionError("closed while idle")  # the pool opens another


#: Messages of a server that has too many connections or requests.
OVERLOADED = ("query_wait_timeout", "too many clients", "no more connections allowed")


# `thaw`: after a connection was lost without a FIN, only the next statement notices.
# `exhaustion`: PgBouncer also closes the connection after `query_wait_timeout`, so check for
# overload before a lost connection.
async def run(work: Callable[[AsyncSession], Awaitable[T]]) -> T:
    """Await `work` in a transaction, and once more after a lost connection."""
    try:
        async with Session.begin() as session:
            return await work(session)
    except DBAPIError as error:
        if any(message in str(error.orig) for message in OVERLOADED):
            raise HTTPException(503, "overloaded", {"Retry-After": "5"}) from error
        if not error.connection_invalidated:
            raise
    async with Session.begin() as session:
        return await work(session)


# `deadline`: the driver cancels its query when the task is cancelled.
class WithinDeadline:
    """Middleware that returns 504 half a second before the function's timeout."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        context = scope.get("aws.context")
        seconds = context.get_remaining_time_in_millis() / 1000 - 0.5 if context else None
        try:
            async with asyncio.timeout(seconds):
                await self.app(scope, receive, send)
        except TimeoutError:  # before the response began; a streaming app needs more
            timeout_response = JSONResponse({"title": "Gateway Timeout", "status": 504}, 504)
            await timeout_response(scope, receive, send)


# `shutdown`: Lambda sends SIGTERM only where an extension is registered.
def call_at_shutdown(close: Callable[[], None]) -> None:
    """Call `close` at SIGTERM, from another thread. Use it once, at import, on the main thread."""
    api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if api is None:
        return
    connection = http.client.HTTPConnection(api)
    headers = {"Lambda-Extension-Name": "shutdown", "Content-Type": "application/json"}
    connection.request("POST", "/2020-01-01/extension/register", '{"events": []}', headers)
    response = connection.getresponse()
    response.read()
    identity = {"Lambda-Extension-Identifier": response.headers["Lambda-Extension-Identifier"]}

    def wait_for_next_event() -> None:  # without it the init phase never ends
        connection.request("GET", "/2020-01-01/extension/event/next", headers=identity)
        connection.getresponse()

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # A Python handler alone does not run while the runtime client waits for the next event.
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing)

    def watch() -> None:
        os.read(reading, 1)
        try:
            close()
        finally:
            os._exit(0)

    for target in (wait_for_next_event, watch):
        threading.Thread(target=target, daemon=True).start()


app = FastAPI()


@app.get("/orders/{order_id}", response_model=OrderOut)
async def read_order(order_id: int) -> Order:
    async def find(session: AsyncSession) -> Order | None:
        result = await session.execute(select(Order).where(Order.id == order_id))
        return result.scalar_one_or_none()

    order = await run(find)
    if order is None:
        raise HTTPException(404)
    return order


# `restarts`: the key and the order are written in one transaction, so a write that `run` or the
# caller repeats with the same key adds nothing.
@app.post("/orders", response_model=OrderOut, status_code=201)
async def place_order(
    order: OrderIn, idempotency_key: Annotated[str, Header(min_length=1, max_length=255)]
) -> Order:
    digest = hashlib.sha256(order.customer_name.encode()).hexdigest()

    async def place(session: AsyncSession) -> Order | None:
        claim = insert(OrderRequest).values(key=idempotency_key, body_sha256=digest)
        order_id = await session.scalar(
            claim.on_conflict_do_nothing().returning(OrderRequest.order_id)
        )
        if order_id is not None:
            placed = Order(id=order_id, customer_name=order.customer_name)
            session.add(placed)
            return placed
        existing_order = select(Order).join(OrderRequest, OrderRequest.order_id == Order.id)
        result = await session.execute(
            existing_order.where(
                OrderRequest.key == idempotency_key, OrderRequest.body_sha256 == digest
            )
        )
        return result.scalar_one_or_none()

    placed = await run(place)
    if placed is None:
        raise HTTPException(422, "this key was used for another order")
    return placed


# `events`: one loop for the life of the process, idle while Lambda waits for the next event.
loop = asyncio.new_event_loop()
asyncio.set_event_loop(loop)
handler = Mangum(WithinDeadline(app), lifespan="off")
call_at_shutdown(lambda: loop.run_until_complete(engine.dispose()))
