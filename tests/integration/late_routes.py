"""Routes that use the database past their deadline, in every possible way."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from typing import Any

from anyio import from_thread
from fastapi import BackgroundTasks, FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy import bindparam, select, text, update
from sqlalchemy.orm import Session

from handler.orders import Order
from handler.warm import LambdaHandler, get_engine, install, run, session

app = FastAPI()
install(app)

if os.environ.get("MIDDLEWARE"):

    @app.middleware("http")
    async def add_header(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers["x-added"] = "by middleware"
        return response


STATUS = select(Order.status).where(Order.id == bindparam("number"))
READ_LOCKED = STATUS.with_for_update()


def read_locked(s: Session) -> str | None:
    return s.scalar(READ_LOCKED, {"number": 1})


def write(s: Session) -> None:
    s.execute(update(Order).where(Order.id == 1).values(status="too late"))


@app.get("/now")
async def now() -> str | None:
    return await run(lambda s: s.scalar(STATUS, {"number": 1}), autocommit=True, idempotent=True)


@app.get("/async-read")
async def async_read() -> str | None:
    return await run(read_locked, idempotent=True)


@app.get("/async-write")
async def async_write() -> None:
    await run(write, idempotent=True)


@app.get("/async-fast-write")
async def async_fast_write() -> None:
    await run(write, autocommit=True)


@app.get("/sync-read")
def sync_read() -> str | None:
    return from_thread.run(run, read_locked)


@app.get("/sync-write")
def sync_write() -> None:
    from_thread.run(run, write)


@app.get("/thread-without-context")
async def thread_without_context() -> None:
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(
        None, lambda: asyncio.run_coroutine_threadsafe(run(write), loop).result()
    )


def compute_too_long(s: Session) -> None:
    s.execute(update(Order).where(Order.id == 2).values(status="too late"))
    time.sleep(0.55)


@app.get("/late-commit")
async def late_commit() -> None:
    """Compute past the deadline between a statement and COMMIT."""
    await run(compute_too_long)


@app.get("/late-commit-of-its-own")
async def late_commit_of_its_own() -> None:
    async with session() as s:
        await s.run_sync(compute_too_long)
        await s.commit()


@app.get("/late-commit-on-the-engine")
async def late_commit_on_the_engine() -> None:
    async with get_engine().begin() as connection:
        await connection.execute(update(Order).where(Order.id == 2).values(status="too late"))
        time.sleep(0.55)  # noqa: ASYNC251  # CPU-bound work in a route


@app.get("/late-statement")
async def late_statement() -> None:
    """Send a prepared statement past the deadline, before anything can be cancelled."""

    def work(s: Session) -> None:
        for status in ("before", "too late"):
            s.execute(update(Order).where(Order.id == 2).values(status=status))
            time.sleep(0.55 if status == "before" else 0)

    await run(work, autocommit=True)


@app.get("/session-write")
async def session_write() -> None:
    async with session() as s:
        await s.execute(update(Order).where(Order.id == 1).values(status="too late"))


@app.get("/idle-session")
async def idle_session() -> None:
    async with session() as s:
        await s.execute(update(Order).where(Order.id == 2).values(status="too late"))
        await asyncio.sleep(9)


@app.get("/sync-idle-session")
def sync_idle_session() -> None:
    from_thread.run(idle_session)


@app.get("/stream")
async def stream() -> StreamingResponse:
    async def parts() -> AsyncIterator[str]:
        yield "first"
        async with session() as s:
            await s.execute(update(Order).where(Order.id == 1).values(status="too late"))
            yield "last"

    return StreamingResponse(parts())


@app.get("/background")
async def background(tasks: BackgroundTasks) -> str:
    tasks.add_task(run, write)
    return "accepted"


@app.get("/forgotten-task")
async def forgotten_task() -> str:
    app.state.task = asyncio.create_task(run(write))
    await asyncio.sleep(0.1)
    return "responded"


@app.get("/blocking")
def blocking() -> None:
    """Block a thread, which cannot be stopped and still runs after the 504, then query."""
    time.sleep(2.5)
    from_thread.run(run, write)


@app.get("/idle")
async def idle() -> None:
    await asyncio.sleep(1.3)


@app.get("/blocking-in-an-executor")
async def blocking_in_an_executor() -> None:
    loop = asyncio.get_running_loop()

    def wait_and_write() -> None:
        time.sleep(2.5)
        asyncio.run_coroutine_threadsafe(run(write), loop).result()

    await loop.run_in_executor(None, wait_and_write)


@app.get("/sleep/{milliseconds}/{access}")
async def sleep(milliseconds: int, access: str) -> int:
    """Sleep this many milliseconds on the server, then return the number."""
    query = text(f"SELECT {milliseconds} FROM pg_sleep({milliseconds / 1000})")

    def work(s: Session) -> int:
        return int(s.execute(query).scalar_one())

    if access == "transaction":
        return await run(work)
    if access == "session":
        async with session() as s:
            return await s.run_sync(work)
    return await run(work, autocommit=True)


@app.get("/sync-sleep/{milliseconds}")
def sync_sleep(milliseconds: int) -> int:
    return from_thread.run(sleep, milliseconds, "autocommit")


@app.get("/error")
async def error() -> None:
    raise LookupError("no such thing")


async def _on_schedule() -> dict[str, Any]:
    await run(write)
    return {}


handler = LambdaHandler(app, on_schedule=_on_schedule)
