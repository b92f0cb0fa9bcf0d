"""The typical errors of SQLAlchemy's async recipes do not occur with this engine."""

import asyncio
import gc
import json
import os
import re
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from sqlalchemy import ForeignKey, String, create_engine, make_url, select, text
from sqlalchemy.exc import (
    ArgumentError,
    DBAPIError,
    MissingGreenlet,
    NoSuchModuleError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from handler import orders
from handler.warm import session as new_session
from handler.warm.database import engine
from handler.warm.database.connection import connector
from handler.warm.request_policy import classify
from infra.database import roles
from infra.local import ROOT
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import (
    ColdHandler,
    Lambda,
    PgConnection,
    app_clients,
    psycopg_url,
    run,
    set_environment,
)
from tests.events import http_api

# --- ModuleNotFoundError: No module named 'asyncpg' -------------------------------------------


def test_a_missing_driver_fails_and_the_image_pins_it(tmp_path: Path) -> None:
    hide_module = "import sys; sys.modules['asyncpg'] = None; "
    recipe = (
        "from sqlalchemy.ext.asyncio import create_async_engine as c; c('postgresql+asyncpg://')"
    )
    status, output = run("-c", hide_module + recipe)
    assert status == 1
    assert "ModuleNotFoundError" in output
    assert "asyncpg" in output
    assert re.search(r"^asyncpg==", (ROOT / "handler/requirements.txt").read_text(), re.M)


def test_a_missing_greenlet_fails_and_the_image_pins_it() -> None:
    """SQLAlchemy 2.1 installs it only with the extra: `sqlalchemy[asyncio]`."""
    hide_module = "import sys; sys.modules['greenlet'] = None; "
    status, output = run("-c", hide_module + "import sqlalchemy.ext.asyncio")
    assert status == 1
    assert "greenlet" in output
    assert re.search(r"^greenlet==", (ROOT / "handler/requirements.txt").read_text(), re.M)


# --- MissingGreenlet ---------------------------------------------------------------------------


def assert_missing_greenlet(read: Callable[[], object]) -> None:
    """Assert that `read` raises, and ignore the warning about a coroutine never awaited."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # With aiosqlite, SQLAlchemy wraps the error in a StatementError.
        with pytest.raises((MissingGreenlet, StatementError), match="greenlet_spawn has not been"):
            read()
        gc.collect()


class Base(DeclarativeBase):
    pass


class Customer(Base):
    __tablename__ = "customer"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(40))
    notes: Mapped[list["Note"]] = relationship()


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("customer.id"))


@pytest.fixture
async def customers() -> Any:
    """Create example customers in SQLite, which a unit test can use without Postgres."""
    sqlite_engine = create_async_engine("sqlite+aiosqlite:///:memory:")
    async with sqlite_engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(sqlite_engine) as session:
        session.add(Customer(id=1, name="Teal Tools", notes=[Note(id=1)]))
        await session.commit()
    yield sqlite_engine
    await sqlite_engine.dispose()


async def test_reading_an_expired_attribute_raises(customers: Any) -> None:
    async with AsyncSession(customers) as session:
        customer = await session.get_one(Customer, 1)
        await session.commit()
        assert_missing_greenlet(lambda: customer.name)
    async with async_sessionmaker(customers, expire_on_commit=False)() as session:
        customer = await session.get_one(Customer, 1)
        await session.commit()
        assert customer.name == "Teal Tools"


async def test_engine_sessions_keep_attributes_after_a_commit(lambda_handler: Lambda) -> None:
    async with AsyncSession(engine.get_engine()) as session:
        order = await session.get_one(orders.Order, 1)
        await session.commit()
        assert_missing_greenlet(lambda: order.customer_name)
    async with new_session() as session:
        order = await session.get_one(orders.Order, 1)
        await session.commit()
        assert order.customer_name == "Amber Bakery"
    await engine.dispose()


async def test_loading_a_relationship_lazily_raises(customers: Any) -> None:
    async with AsyncSession(customers) as session:
        customer = await session.get_one(Customer, 1)
        assert_missing_greenlet(lambda: customer.notes)
    async with AsyncSession(customers) as session:
        query = select(Customer).options(selectinload(Customer.notes))
        customer = (await session.scalars(query)).one()
        assert [note.id for note in customer.notes] == [1]


# --- Could not parse SQLAlchemy URL; special characters in the password ------------------------

PASSWORDS = ["p@ss", "#", "%", "%41", "/", ":", "'", '"', "?", "\\", "a b", "ü한\N{SNOWMAN}"]


def test_a_malformed_url_raises() -> None:
    with pytest.raises(ArgumentError, match="Could not parse SQLAlchemy URL"):
        create_async_engine("postgresql+asyncpg//appuser@localhost/storefront")
    with pytest.raises(NoSuchModuleError):
        create_async_engine("postgresql+asyncgp://")


def test_a_password_in_a_url_must_be_percent_encoded() -> None:
    assert make_url("postgresql://u:p@ss/w@h/d").host != "h"  # split at the wrong place
    assert make_url(f"postgresql://u:{quote('p@ss/w', safe='')}@h/d").password == "p@ss/w"


async def test_any_password_works_without_a_url(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, own_admin: PgConnection
) -> None:
    for password in PASSWORDS:
        await roles.set_password(own_admin, roles.APP, password)
        set_environment(monkeypatch, own_stack.environment() | {"DB_PASS": password})
        with ColdHandler() as invoke:
            response = await asyncio.to_thread(invoke, http_api("GET", "/orders/1"))
            assert response["statusCode"] == 200, password


# --- QueuePool limit … timed out ---------------------------------------------------------------


async def test_a_fully_checked_out_pool_times_out(stack: Stack) -> None:
    small_engine = engine.create_engine(stack.settings(pool_timeout=0.1))
    try:
        async with small_engine.connect():
            with pytest.raises(PoolTimeout, match=r"QueuePool limit of size 1 overflow 0 reached"):
                await small_engine.connect()
        async with small_engine.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
    finally:
        await small_engine.dispose()


def test_an_exhausted_pool_is_503_with_retry_after(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, stack.environment() | {"DB_POOL_TIMEOUT": "0.1"})

    async def find_with_exhausted_pool(order_id: int) -> Any:
        async with engine.get_engine().connect():
            return await find(order_id)

    find = orders.find
    with ColdHandler() as invoke:
        monkeypatch.setattr(orders, "find", find_with_exhausted_pool)
        response = invoke(http_api("GET", "/orders/1"))
        assert (response["statusCode"], response["headers"]["retry-after"]) == (503, "1")
        monkeypatch.setattr(orders, "find", find)
        assert invoke(http_api("GET", "/orders/1"))["statusCode"] == 200


# --- connection refused; connection was closed; terminated -------------------------------------


async def test_a_refused_connection_is_503_and_the_next_request_succeeds(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            bouncer.stop()
            rejected = await fleet.invoke(http_api("GET", "/orders/1"))
            assert rejected.payload["statusCode"] == 503
            assert rejected.payload["headers"]["retry-after"] == "1"
            bouncer.start()
            served = await fleet.invoke(http_api("GET", "/orders/1"))
            assert (served.payload["statusCode"], served.pid) == (200, rejected.pid)


async def test_a_closed_connection_raises_and_is_replaced(
    stack: Stack, admin: PgConnection
) -> None:
    async_engine = engine.create_engine(stack.settings())
    try:
        async with async_engine.connect() as connection:
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
            # The message depends on how much of the server's message was already read.
            with pytest.raises(
                DBAPIError, match=r"closed|another operation .* in progress"
            ) as error_info:
                await connection.execute(text("SELECT 1"))
            assert classify(error_info.value).retryable
        async with async_engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_backend_pid()")) != pid
    finally:
        await async_engine.dispose()


async def test_a_backend_terminated_behind_pgbouncer_fails_no_request(
    stack: Stack, admin: PgConnection
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            [server] = [row for row in bouncer.show("SERVERS") if row["user"] == roles.APP]
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", server["remote_pid"])
            assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200


# --- Common questions ----------------------------------------------------------------------------


async def test_a_synchronous_engine_shares_nothing_with_the_async_one(stack: Stack) -> None:
    async_engine = engine.create_engine(stack.settings())
    sync_engine = create_engine(psycopg_url(stack.settings()))
    try:
        with sync_engine.connect() as sync_connection:
            sync_pid = sync_connection.scalar(text("SELECT pg_backend_pid()"))
        async with async_engine.connect() as connection:
            assert await connection.scalar(text("SELECT pg_backend_pid()")) != sync_pid
        assert sync_engine.pool is not async_engine.pool
    finally:
        sync_engine.dispose()
        await async_engine.dispose()


async def test_echo_logs_customer_data_and_this_engine_does_not(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    stock_engine = create_async_engine(
        "postgresql+asyncpg://", async_creator=connector(stack.settings()), echo=True
    )
    engine_under_test = engine.create_engine(stack.settings(), echo=True)
    query, value = text("SELECT CAST(:value AS text)"), {"value": "Crimson Candles"}
    for engine_to_check in (stock_engine, engine_under_test):
        caplog.clear()
        async with engine_to_check.connect() as connection:
            await connection.execute(query, value)
        assert ("Crimson Candles" in caplog.text) == (engine_to_check is stock_engine)
        await engine_to_check.dispose()


# --- Prewarming ----------------------------------------------------------------------------------


async def test_all_pool_connections_are_opened_at_startup(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.another_pgbouncer() as bouncer:
        settings = {"DB_PREWARM": "required", "DB_POOL_SIZE": "5"}
        set_environment(monkeypatch, stack.environment(bouncer) | settings)
        with ColdHandler():
            assert len(app_clients(bouncer)) == 5
            assert engine.get_engine().pool.checkedin() == 5  # type: ignore[attr-defined]  # it is a QueuePool


@pytest.mark.parametrize("prewarm", ["on", "required"])
async def test_a_failed_prewarm_is_logged_or_stops_the_start(
    stack: Stack, tmp_path: Path, prewarm: str
) -> None:
    with stack.another_pgbouncer() as bouncer:
        environment = stack.environment(bouncer) | {"DB_PREWARM": prewarm}
        bouncer.stop()
        async with Fleet(environment, logs=tmp_path) as fleet:
            first = await fleet.invoke(http_api("GET", "/health"))
            if prewarm == "required":
                assert first.error == "ConnectionRefusedError"
                return
            assert first.payload["statusCode"] == 200
            assert "pre-warm failed" in (tmp_path / "sandbox-1.log").read_text()
            bouncer.start()
            assert (await fleet.invoke(http_api("GET", "/orders/1"))).payload["statusCode"] == 200


# --- As a long-running service -------------------------------------------------------------------

SEED_POOL = {
    "DB_POOL_SIZE": "10",
    "DB_MAX_OVERFLOW": "5",
    "DB_POOL_RECYCLE": "1800",
    "DB_POOL_TIMEOUT": "30",
    "DB_PREWARM": "required",
}


async def test_uvicorn_serves_the_app_and_closes_the_pool_at_exit(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        service = subprocess.Popen(  # noqa: ASYNC220  # its output is read at the end
            [
                *(sys.executable, "-m", "uvicorn", "handler.app:app"),
                *("--fd", str(listener.fileno())),
            ],
            cwd=ROOT,
            env={**os.environ, **stack.environment(bouncer), **SEED_POOL},
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                assert (await client.get("/health")).status_code == 200
                assert len(app_clients(bouncer)) == 10  # before any query
                responses = await asyncio.gather(*(client.get("/orders/1") for _ in range(100)))
                assert {response.status_code for response in responses} == {200}
                assert 10 <= len(app_clients(bouncer)) <= 15
        finally:
            service.terminate()
            output, _ = service.communicate(timeout=20)
        assert "Traceback" not in output
        assert not app_clients(bouncer)
        closed = [
            line for line in bouncer.log_since_start().splitlines() if f"/{roles.APP}@" in line
        ]
        assert not [line for line in closed if "unexpected eof" in line]
        assert [line for line in closed if "client close request" in line]
        assert json.loads(responses[0].text)["id"] == 1
