"""The errors that readers of SQLAlchemy's async recipes meet: each provoked, then met here.

Left as they were, a recipe's engine fails as described; the handler's own does not, or answers
clearly.
"""

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

import asyncpg
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

from handler import engine, orders
from handler.connection import connector
from handler.failures import classify
from infra.database import roles
from infra.local import ROOT
from infra.local.fleet import Fleet
from infra.local.stack import DATABASE, Stack
from tests.conftest import Lambda, cold_runtime, psycopg_url, run
from tests.events import http_api

# --- ModuleNotFoundError: No module named 'asyncpg' -------------------------------------------


def test_without_the_driver_the_engine_cannot_be_made_and_the_image_pins_it(tmp_path: Path) -> None:
    hide = "import sys; sys.modules['asyncpg'] = None; "
    recipe = (
        "from sqlalchemy.ext.asyncio import create_async_engine as c; c('postgresql+asyncpg://')"
    )
    code, output = run("-c", hide + recipe)
    assert code == 1
    assert "ModuleNotFoundError" in output
    assert "asyncpg" in output
    assert re.search(r"^asyncpg==", (ROOT / "handler/requirements.txt").read_text(), re.M)


def test_without_greenlet_nothing_runs_and_the_image_pins_it() -> None:
    """SQLAlchemy 2.1 installs it only with the extra: `sqlalchemy[asyncio]`."""
    hide = "import sys; sys.modules['greenlet'] = None; "
    code, output = run("-c", hide + "import sqlalchemy.ext.asyncio")
    assert code == 1
    assert "greenlet" in output
    assert re.search(r"^greenlet==", (ROOT / "handler/requirements.txt").read_text(), re.M)


# --- MissingGreenlet ---------------------------------------------------------------------------


def missing_greenlet(read: Callable[[], object]) -> None:
    """The error, and no more of it: the query that nobody could await goes without its warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # aiosqlite's comes wrapped in a StatementError, asyncpg's as it is.
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
    """The seed's unit test: no Postgres, an SQLite in memory."""
    memory = create_async_engine("sqlite+aiosqlite:///:memory:")
    async with memory.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    async with AsyncSession(memory) as session:
        session.add(Customer(id=1, name="Teal Tools", notes=[Note(id=1)]))
        await session.commit()
    yield memory
    await memory.dispose()


async def test_reading_an_attribute_after_a_commit(customers: Any) -> None:
    async with AsyncSession(customers) as session:
        customer = await session.get_one(Customer, 1)
        await session.commit()
        missing_greenlet(lambda: customer.name)
    async with async_sessionmaker(customers, expire_on_commit=False)() as session:
        customer = await session.get_one(Customer, 1)
        await session.commit()
        assert customer.name == "Teal Tools"


async def test_our_own_sessions_keep_attributes_after_a_commit(lambda_handler: Lambda) -> None:
    async with AsyncSession(engine.engine()) as session:
        order = await session.get_one(orders.Order, 1)
        await session.commit()
        missing_greenlet(lambda: order.customer_name)
    async with engine.session() as session:
        order = await session.get_one(orders.Order, 1)
        await session.commit()
        assert order.customer_name == "Amber Bakery"
    await engine.dispose()


async def test_loading_a_relationship_lazily(customers: Any) -> None:
    async with AsyncSession(customers) as session:
        customer = await session.get_one(Customer, 1)
        missing_greenlet(lambda: customer.notes)
    async with AsyncSession(customers) as session:
        loaded = select(Customer).options(selectinload(Customer.notes))
        customer = (await session.scalars(loaded)).one()
        assert [note.id for note in customer.notes] == [1]


# --- Could not parse SQLAlchemy URL; special characters in the password ------------------------

PASSWORDS = ["p@ss", "#", "%", "%41", "/", ":", "'", '"', "?", "\\", "a b", "ü한\N{SNOWMAN}"]


def test_a_malformed_url() -> None:
    with pytest.raises(ArgumentError, match="Could not parse SQLAlchemy URL"):
        create_async_engine("postgresql+asyncpg//appuser@localhost/storefront")
    with pytest.raises(NoSuchModuleError):
        create_async_engine("postgresql+asyncgp://")


def test_a_password_in_a_url_must_be_encoded_and_the_wrong_way_is_wrong() -> None:
    assert make_url("postgresql://u:p@ss/w@h/d").host != "h"  # split at the wrong place
    assert make_url(f"postgresql://u:{quote('p@ss/w', safe='')}@h/d").password == "p@ss/w"


async def test_any_password_works_here_through_scram_since_no_url_holds_it(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    admin = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
    for password in PASSWORDS:
        await roles.set_password(admin, roles.APP, password)
        environment = own_stack.environment() | {"DB_PASS": password}
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        with cold_runtime() as invoke:
            answer = await asyncio.to_thread(invoke, http_api("GET", "/orders/1"))
            assert answer["statusCode"] == 200, password
    await admin.close()


# --- QueuePool limit … timed out ---------------------------------------------------------------


async def test_a_pool_whose_connections_are_all_out(stack: Stack) -> None:
    exhausted = engine.create_engine(stack.settings(pool_timeout=0.1))
    try:
        async with exhausted.connect():
            with pytest.raises(PoolTimeout, match=r"QueuePool limit of size 1 overflow 0 reached"):
                await exhausted.connect()
        async with exhausted.connect() as connection:
            assert await connection.scalar(text("SELECT 1")) == 1
    finally:
        await exhausted.dispose()


def test_a_pool_that_is_exhausted_is_503_and_says_when_to_come_again(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (stack.environment() | {"DB_POOL_TIMEOUT": "0.1"}).items():
        monkeypatch.setenv(name, value)

    async def find_while_all_are_out(order_id: int) -> Any:
        async with engine.engine().connect():
            return await find(order_id)

    find = orders.find
    with cold_runtime() as invoke:
        monkeypatch.setattr(orders, "find", find_while_all_are_out)
        answer = invoke(http_api("GET", "/orders/1"))
        assert (answer["statusCode"], answer["headers"]["retry-after"]) == (503, "1")
        monkeypatch.setattr(orders, "find", find)
        assert invoke(http_api("GET", "/orders/1"))["statusCode"] == 200


# --- connection refused; connection was closed; terminated -------------------------------------


async def test_a_refused_connection_is_503_and_the_next_good_one_is_served(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            bouncer.stop()
            refused = await fleet.invoke(http_api("GET", "/orders/1"))
            assert refused.payload["statusCode"] == 503
            assert refused.payload["headers"]["retry-after"] == "1"
            bouncer.start()
            served = await fleet.invoke(http_api("GET", "/orders/1"))
            assert (served.payload["statusCode"], served.pid) == (200, refused.pid)


async def test_a_connection_that_was_closed_raises_and_is_replaced(stack: Stack) -> None:
    runtime = engine.create_engine(stack.settings())
    admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    try:
        async with runtime.connect() as connection:
            pid = await connection.scalar(text("SELECT pg_backend_pid()"))
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", pid)
            # Which of the two depends on how much of the goodbye the loop has read by then.
            with pytest.raises(
                DBAPIError, match=r"closed|another operation .* in progress"
            ) as raised:
                await connection.execute(text("SELECT 1"))
            assert classify(raised.value).again
        async with runtime.connect() as connection:
            assert await connection.scalar(text("SELECT pg_backend_pid()")) != pid
    finally:
        await admin.close()
        await runtime.dispose()


async def test_a_backend_terminated_behind_pgbouncer_costs_no_request(stack: Stack) -> None:
    admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
    with stack.another_pgbouncer() as bouncer:
        async with Fleet(stack.environment(bouncer)) as fleet:
            await fleet.invoke(http_api("GET", "/orders/1"))
            [server] = [row for row in bouncer.show("SERVERS") if row["user"] == roles.APP]
            await admin.execute("SELECT pg_terminate_backend($1, 5000)", server["remote_pid"])
            answer = await fleet.invoke(http_api("GET", "/orders/1"))
            assert answer.payload["statusCode"] == 200
    await admin.close()


# --- The seed's questions ----------------------------------------------------------------------


async def test_a_second_synchronous_engine_shares_nothing(stack: Stack) -> None:
    runtime = engine.create_engine(stack.settings())
    blocking = create_engine(psycopg_url(stack.settings()))
    try:
        with blocking.connect() as connection:
            theirs = connection.scalar(text("SELECT pg_backend_pid()"))
        async with runtime.connect() as ours:
            assert await ours.scalar(text("SELECT pg_backend_pid()")) != theirs
        assert blocking.pool is not runtime.pool
    finally:
        blocking.dispose()
        await runtime.dispose()


async def test_echo_shows_what_customers_sent_and_our_engine_does_not(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    telling = create_async_engine(
        "postgresql+asyncpg://", async_creator=connector(stack.settings()), echo=True
    )
    ours = engine.create_engine(stack.settings(), echo=True)
    query, value = text("SELECT CAST(:value AS text)"), {"value": "Crimson Candles"}
    for each in (telling, ours):
        caplog.clear()
        async with each.connect() as connection:
            await connection.execute(query, value)
        assert ("Crimson Candles" in caplog.text) == (each is telling)
        await each.dispose()


# --- Pre-warm ----------------------------------------------------------------------------------


async def test_a_pool_is_pre_warmed_all_at_once(
    stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stack.another_pgbouncer() as bouncer:
        wanted = {"DB_PREWARM": "required", "DB_POOL_SIZE": "5"}
        for name, value in (stack.environment(bouncer) | wanted).items():
            monkeypatch.setenv(name, value)
        with cold_runtime():
            clients = [row for row in bouncer.show("CLIENTS") if row["user"] == roles.APP]
            assert len(clients) == 5
            assert engine.engine().pool.checkedin() == 5  # type: ignore[attr-defined]  # a QueuePool has it


@pytest.mark.parametrize("prewarm", ["on", "required"])
async def test_a_pre_warm_that_fails_is_logged_or_ends_the_start(
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
            again = await fleet.invoke(http_api("GET", "/orders/1"))
            assert again.payload["statusCode"] == 200


# --- As a long-running service -----------------------------------------------------------------

SEED_POOL = {
    "DB_POOL_SIZE": "10",
    "DB_MAX_OVERFLOW": "5",
    "DB_POOL_RECYCLE": "1800",
    "DB_POOL_TIMEOUT": "30",
    "DB_PREWARM": "required",
}


async def test_uvicorn_serves_the_app_with_the_seed_s_pool_and_says_goodbye(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer, socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        service = subprocess.Popen(  # noqa: ASYNC220  # its output is read at its end
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

        def clients() -> int:
            return len([row for row in bouncer.show("CLIENTS") if row["user"] == roles.APP])

        try:
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
                assert (await client.get("/health")).status_code == 200
                assert clients() == 10  # before any query
                answers = await asyncio.gather(*(client.get("/orders/1") for _ in range(100)))
                assert {answer.status_code for answer in answers} == {200}
                assert 10 <= clients() <= 15
        finally:
            service.terminate()
            output, _ = service.communicate(timeout=20)
        assert "Traceback" not in output
        assert clients() == 0
        closed = [line for line in bouncer.said().splitlines() if f"/{roles.APP}@" in line]
        assert not [line for line in closed if "unexpected eof" in line]
        assert [line for line in closed if "client close request" in line]
        assert json.loads(answers[0].text)["id"] == 1
