"""`run` and `session` use real transactions, and run the work once."""

import asyncio
import contextlib
import os
import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import (
    CheckConstraint,
    ForeignKey,
    Integer,
    String,
    event,
    insert,
    select,
    text,
    update,
)
from sqlalchemy.exc import DBAPIError, InvalidRequestError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from handler.warm import ConstraintError, DatabaseError, dispose, get_engine, install, run, session
from infra.local import ROOT
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import PgConnection, reset_engine_cache, set_environment


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    balance: Mapped[int] = mapped_column(Integer, CheckConstraint("balance >= 0", name="solvent"))
    owner: Mapped[str | None] = mapped_column(String(40), unique=True)
    parent: Mapped[int | None] = mapped_column(ForeignKey("accounts.id", name="has_parent"))
    children: Mapped[list["Account"]] = relationship()


TABLE = """
CREATE TABLE accounts (id integer PRIMARY KEY,
  balance integer NOT NULL CONSTRAINT solvent CHECK (balance >= 0),
  owner varchar(40) UNIQUE, parent integer CONSTRAINT has_parent REFERENCES accounts (id));
GRANT SELECT, INSERT, UPDATE, DELETE ON accounts TO appuser;
"""

pytestmark = pytest.mark.parametrize("path", ["direct", "pgbouncer"])


@pytest.fixture
async def admin(module_admin: PgConnection) -> PgConnection:
    await module_admin.execute(f"DROP TABLE IF EXISTS accounts; {TABLE}")
    await module_admin.execute("INSERT INTO accounts VALUES (1, 0), (2, 0)")
    return module_admin


@pytest.fixture
async def proxy(
    module_stack: Stack, path: str, admin: PgConnection, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[TcpProxy]:
    """Put a TCP proxy between this process's engine and Postgres or PgBouncer."""
    environment = module_stack.environment(direct=path == "direct")
    with TcpProxy(environment["DB_HOST"], int(environment["DB_PORT"])) as proxy:
        set_environment(monkeypatch, environment | {"DB_PORT": str(proxy.port)})
        reset_engine_cache()
        yield proxy
        await dispose()


def balance(account: int = 1) -> Callable[[Session], int]:
    return lambda s: s.scalars(select(Account.balance).where(Account.id == account)).one()


def add(account: int, amount: int, lock: bool = True) -> Callable[[Session], None]:
    def work(s: Session) -> None:
        s.get_one(Account, account, with_for_update=lock or None).balance += amount

    return work


async def read(account: int = 1) -> int:
    return await run(balance(account), autocommit=True, idempotent=True)


# --- Transactions --------------------------------------------------------------------------------


async def test_an_exception_rolls_back_the_transaction(proxy: TcpProxy) -> None:
    def work(s: Session) -> None:
        s.execute(update(Account).values(balance=7))
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await run(work)
    assert await read() == 0


async def test_a_session_block_commits_at_its_end_and_rolls_back_on_an_exception(
    proxy: TcpProxy,
) -> None:
    async with session() as s:
        await s.execute(update(Account).values(balance=5))
    assert await read() == 5

    async def fail() -> None:
        async with session() as s:
            await s.execute(update(Account).values(balance=7))
            raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await fail()
    assert await read() == 5


async def test_flushed_rows_do_not_exist_after_a_rollback(proxy: TcpProxy) -> None:
    async with session() as s:
        s.add(Account(id=3, balance=1))
        await s.flush()
        await s.rollback()

    def work(sync: Session) -> None:
        sync.add(Account(id=4, balance=1))
        sync.flush()
        sync.rollback()

    await run(work)
    ids = await run(lambda s: s.scalars(select(Account.id)).all(), autocommit=True)
    assert sorted(ids) == [1, 2]


@pytest.mark.parametrize("own_session", [False, True], ids=["run", "session"])
async def test_forty_concurrent_locked_increments_add_up_to_forty(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch, own_session: bool
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "4")
    reset_engine_cache()

    async def increment_ten_times() -> None:
        for _ in range(10):
            if own_session:
                async with session() as s:
                    account = await s.get_one(Account, 1, with_for_update=True)
                    account.balance += 1
            else:
                await run(add(1, 1))

    await asyncio.gather(*(increment_ten_times() for _ in range(4)))
    assert await read() == 40


def swallow_error(s: Session) -> None:
    s.execute(update(Account).values(balance=9))
    with contextlib.suppress(DBAPIError):
        s.execute(text("SELECT 1 / 0"))


async def swallow_error_in_session() -> None:
    async with session() as s:
        await s.run_sync(swallow_error)


@pytest.mark.parametrize("api", ["run", "session", "engine"])
async def test_a_swallowed_database_error_is_not_a_success(proxy: TcpProxy, api: str) -> None:
    async def swallow_error_on_engine() -> None:
        async with get_engine().begin() as connection:
            with contextlib.suppress(DBAPIError):
                await connection.execute(text("SELECT 1 / 0"))

    work = {
        "run": lambda: run(swallow_error),
        "session": swallow_error_in_session,
        "engine": swallow_error_on_engine,
    }[api]
    with pytest.raises((DatabaseError, DBAPIError)) as error_info:
        await work()
    if api != "engine":
        assert isinstance(error_info.value, DatabaseError)
        assert (error_info.value.sqlstate, error_info.value.failure.status) == ("25P02", 500)
        assert "begin_nested()" in error_info.value.failure.hint
    assert await read() == 0

    def recover_with_savepoint(s: Session) -> None:
        s.execute(update(Account).values(balance=9))
        with contextlib.suppress(DBAPIError), s.begin_nested():
            s.execute(text("SELECT 1 / 0"))

    await run(recover_with_savepoint)
    assert await read() == 9


@pytest.mark.parametrize("command", ["ROLLBACK", "COMMIT"])
async def test_work_that_ends_its_own_transaction_is_an_error(
    proxy: TcpProxy, command: str
) -> None:
    def work(s: Session) -> None:
        s.execute(update(Account).values(balance=9))
        s.execute(text(command))

    with pytest.raises(InvalidRequestError, match="ended its transaction"):
        await run(work)


async def test_a_connect_listener_may_execute_statements(proxy: TcpProxy) -> None:
    @event.listens_for(get_engine().sync_engine, "connect")
    def set_time_zone(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SET TIME ZONE 'Asia/Tokyo'")
        cursor.close()
        connection.commit()

    @event.listens_for(get_engine().sync_engine, "connect")
    def read(connection: Any, _: Any) -> None:
        cursor = connection.cursor()
        cursor.execute("SELECT 1")
        cursor.close()

    hour = text("SELECT CAST(EXTRACT(hour FROM timestamptz '2026-01-01 20:00+00') AS integer)")
    async with get_engine().begin() as connection:
        assert await connection.scalar(hour) == 5
    assert await run(lambda s: s.scalar(hour)) == 5
    # The backend's pid would prove nothing: PgBouncer may use another for each transaction.
    assert proxy.connections == 1


async def test_an_insert_whose_column_changed_its_type_may_be_committed_in_autocommit(
    proxy: TcpProxy, admin: PgConnection
) -> None:
    def insert_account(account: int) -> Callable[[Session], Any]:
        statement = text("INSERT INTO accounts VALUES (:id, 0) RETURNING balance")
        return lambda s: s.scalar(statement.columns(), {"id": account})

    assert await run(insert_account(7), autocommit=True) == 0
    await admin.execute("ALTER TABLE accounts ALTER COLUMN balance TYPE bigint")
    with pytest.raises(DatabaseError) as error_info:
        await run(insert_account(8), autocommit=True)
    assert await admin.fetchval("SELECT count(*) FROM accounts WHERE id = 8") == 1
    assert error_info.value.failure.retry_after is None
    assert "may have been committed" in error_info.value.failure.hint


async def test_an_unknown_isolation_level_is_a_type_error(proxy: TcpProxy) -> None:
    with pytest.raises(TypeError, match="READ COMMITTED, REPEATABLE READ, SERIALIZABLE"):
        await run(balance(), isolation="AUTOCOMMIT")  # type: ignore[call-overload]


@pytest.mark.parametrize("seconds", [0, -1, 9, 100])
async def test_a_statement_timeout_must_be_below_the_command_timeout(
    proxy: TcpProxy, seconds: float
) -> None:
    with pytest.raises(ValueError, match="below DB_COMMAND_TIMEOUT, 9"):
        await run(balance(), statement_timeout=seconds)


# --- Autocommit ----------------------------------------------------------------------------------


def add_two_rows(s: Session) -> None:
    s.add_all([Account(id=8, balance=1), Account(id=9, balance=1)])
    s.flush()


NEED_A_TRANSACTION: dict[str, Callable[[Session], Any]] = {
    "begin": lambda s: s.begin(),
    "begin_nested": lambda s: s.begin_nested(),
    "rollback": lambda s: s.rollback(),
    "flush": lambda s: add_two_rows(s),
    "with_for_update": lambda s: s.get(Account, 1, with_for_update=True),
    "with_for_update.": lambda s: s.scalars(
        select(Account).from_statement(select(Account).with_for_update())
    ),
    "list of several rows": lambda s: s.execute(
        insert(Account), [{"id": 8, "balance": 1}, {"id": 9, "balance": None}]
    ),
    "FOR SHARE": lambda s: s.execute(text("SELECT 1 FROM accounts FOR SHARE")),
    "BEGIN": lambda s: s.execute(text(" begin")),
    "START": lambda s: s.execute(text("-- why\n/* and how */ START TRANSACTION")),
    "SAVEPOINT": lambda s: s.execute(text("SAVEPOINT a")),
    "SET LOCAL": lambda s: s.execute(text("SET  LOCAL jit = off")),
}


@pytest.mark.parametrize("operation", NEED_A_TRANSACTION)
async def test_operations_that_need_a_transaction_are_rejected_in_autocommit(
    proxy: TcpProxy, operation: str
) -> None:
    with pytest.raises(InvalidRequestError, match=rf"(?s){operation.rstrip('.')}.*run\(work\)"):
        await run(NEED_A_TRANSACTION[operation], autocommit=True)
    assert await run(lambda s: s.scalars(select(Account.id)).all(), autocommit=True) == [1, 2]


def add_without_flush(s: Session) -> None:
    s.add(Account(id=9, balance=1))


async def test_unflushed_changes_in_autocommit_are_an_error(proxy: TcpProxy) -> None:
    with pytest.raises(InvalidRequestError, match="would be lost"):
        await run(add_without_flush, autocommit=True)


async def test_deleting_a_parent_with_children_needs_a_transaction(proxy: TcpProxy) -> None:
    def delete(s: Session) -> None:
        s.delete(s.get_one(Account, 1))
        s.flush()

    with pytest.raises(InvalidRequestError, match="several rows"):
        await run(delete, autocommit=True)
    with pytest.raises(InvalidRequestError, match="bulk_save_objects"):
        await run(lambda s: s.bulk_save_objects([]), autocommit=True)


async def test_a_manually_begun_transaction_is_ended(proxy: TcpProxy) -> None:
    def begin(s: Session) -> None:
        s.connection().exec_driver_sql("BEGIN")

    with pytest.raises(InvalidRequestError, match="BEGIN"):
        await run(begin, autocommit=True)
    await run(lambda s: s.execute(update(Account).values(balance=3)), autocommit=True)
    assert await read() == 3

    def begin_and_fail(s: Session) -> None:
        begin(s)
        raise LookupError("no such thing")

    with pytest.raises(LookupError):
        await run(begin_and_fail, autocommit=True)
    await run(lambda s: s.execute(update(Account).values(balance=4)), autocommit=True)
    assert await read() == 4


async def test_a_time_zone_does_not_leak_into_the_next_transaction(proxy: TcpProxy) -> None:
    day = text("SELECT CAST(timestamptz '2026-01-01 20:00+00' AS date)::text")

    async def read_day() -> Any:
        return await run(lambda s: s.scalar(day), autocommit=True)

    assert await read_day() == "2026-01-01"
    await run(lambda s: s.execute(text("SET TIME ZONE 'Asia/Tokyo'")))
    assert await read_day() == "2026-01-01"


async def test_options_of_a_transaction_are_a_type_error_in_autocommit(proxy: TcpProxy) -> None:
    """They are errors for mypy too, which reports an ignore comment without an error."""
    with pytest.raises(TypeError, match="autocommit"):
        await run(balance(), autocommit=True, isolation="SERIALIZABLE")  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="autocommit"):
        await run(balance(), autocommit=True, read_only=True)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="autocommit"):
        await run(balance(), autocommit=True, statement_timeout=1)  # type: ignore[call-overload]


async def test_autocommit_allows_flushing_one_row_and_locking_statements(proxy: TcpProxy) -> None:
    delete_locked = text(
        "DELETE FROM accounts WHERE id = (SELECT id FROM accounts WHERE id = 3 FOR UPDATE"
        " SKIP LOCKED) RETURNING balance"
    )

    def add_row(s: Session) -> None:
        s.add(Account(id=3, balance=1))
        s.commit()

    await run(add_row, autocommit=True)
    assert await run(lambda s: s.scalar(delete_locked), autocommit=True) == 1


async def test_a_warm_read_takes_one_round_trip_and_two_in_a_transaction_take_four(
    proxy: TcpProxy,
) -> None:
    def two_reads(s: Session) -> None:
        s.execute(select(Account.balance).where(Account.id == 1))
        s.execute(select(Account.balance).where(Account.id == 2))

    for _ in range(2):  # the first iteration prepares the statements
        proxy.reset_counters()
        await read()
        read_round_trips = proxy.round_trips
        proxy.reset_counters()
        await run(two_reads)
        transaction_round_trips = proxy.round_trips
        proxy.reset_counters()
        await run(two_reads, read_only=True, isolation="SERIALIZABLE")
    assert (read_round_trips, transaction_round_trips, proxy.round_trips) == (1, 4, 4)


# --- Settings of a transaction -------------------------------------------------------------------

SETTINGS = ("transaction_isolation", "transaction_read_only", "statement_timeout")


def show_settings(s: Session) -> list[str]:
    return [s.scalar(text(f"SHOW {name}")) or "" for name in SETTINGS]


async def test_transaction_settings_do_not_remain_on_a_server_connection(proxy: TcpProxy) -> None:
    before = await run(show_settings)
    assert before[:2] == ["read committed", "off"]
    during = await run(
        show_settings, isolation="SERIALIZABLE", read_only=True, statement_timeout=1.5
    )
    assert during == ["serializable", "on", "1500ms"]
    with pytest.raises(DatabaseError):
        await run(lambda s: s.execute(text("SELECT 1 / 0")), read_only=True, statement_timeout=1)
    assert await run(show_settings) == before
    assert await run(show_settings, autocommit=True) == before
    async with session(isolation="REPEATABLE READ", read_only=True) as s:
        assert await s.run_sync(show_settings) == ["repeatable read", "on", before[2]]
    assert await run(show_settings) == before


async def test_a_statement_timeout_ends_the_statement(proxy: TcpProxy) -> None:
    with pytest.raises(DatabaseError) as error_info:
        await run(lambda s: s.execute(text("SELECT pg_sleep(9)")), statement_timeout=0.05)
    assert error_info.value.sqlstate == "57014"


async def test_a_read_only_transaction_rejects_writes(proxy: TcpProxy) -> None:
    with pytest.raises(DatabaseError) as error_info:
        await run(add(1, 1, lock=False), read_only=True)
    assert error_info.value.sqlstate == "25006"


# --- Work runs once ------------------------------------------------------------------------------


async def test_a_connection_lost_before_the_work_begins_is_replaced(proxy: TcpProxy) -> None:
    """After a freeze, the socket does not show at once that the connection was closed."""
    await run(add(1, 1))
    proxy.drop("requests", "responses")
    threading.Timer(0.2, proxy.reset_connections).start()  # while BEGIN is unanswered
    await run(add(1, 1))
    assert await read() == 2


#: How many responses to lose; `.ci/run` uses more.
LOST_RESPONSES = int(os.environ.get("LOST_ANSWERS", "20"))


async def lose_the_response(
    call: "asyncio.Task[None]", is_stored: Callable[[], Awaitable[bool]], proxy: TcpProxy
) -> None:
    """Wait until the data is stored, then reset the connection, whose responses are dropped."""
    async with asyncio.timeout(10):
        while not await is_stored():
            await asyncio.sleep(0.001)
    proxy.reset_connections()
    await asyncio.wait({call})


async def test_work_with_an_unanswered_commit_is_not_repeated(
    proxy: TcpProxy, admin: PgConnection
) -> None:
    def add_one(s: Session) -> None:
        s.get_one(Account, 1).balance += 1
        s.flush()
        proxy.drop("responses")  # the next response is the one to COMMIT

    async def is_stored() -> bool:
        return bool(await admin.fetchval("SELECT balance FROM accounts WHERE id = 1") == added)

    added = 0
    while added < LOST_RESPONSES:
        added += 1
        call = asyncio.create_task(run(add_one))
        await lose_the_response(call, is_stored, proxy)
        error = call.exception()
        assert isinstance(error, DatabaseError)
        assert error.failure.hint.startswith(
            "the write may have been committed: check before repeating it"
        )
        assert error.failure.retry_after is None
        assert await is_stored()


async def test_idempotent_work_with_an_unanswered_commit_is_repeated(
    proxy: TcpProxy, admin: PgConnection
) -> None:
    def insert_once(s: Session) -> None:
        calls.append(number)
        s.execute(
            text("INSERT INTO accounts VALUES (:id, 1) ON CONFLICT DO NOTHING"), {"id": number}
        )
        if len(calls) == 1:
            proxy.drop("responses")

    async def is_stored() -> bool:
        return bool(await admin.fetchval("SELECT count(*) FROM accounts WHERE id = $1", number))

    number = 99
    while number < 99 + LOST_RESPONSES:
        number += 1
        calls: list[int] = []
        call = asyncio.create_task(run(insert_once, idempotent=True))
        await lose_the_response(call, is_stored, proxy)
        assert call.exception() is None
        assert len(calls) == 2
    assert await admin.fetchval("SELECT count(*) FROM accounts WHERE id >= 100") == LOST_RESPONSES


async def deadlock(idempotent: bool) -> tuple[Any, ...]:
    """Run two transactions that lock the same rows in opposite order; return their outcomes."""
    both_have_one_row = asyncio.Barrier(2)

    def lock(first: int, second: int) -> Callable[[Session], None]:
        is_first_attempt = True

        def work(s: Session) -> None:
            nonlocal is_first_attempt
            s.execute(update(Account).where(Account.id == first).values(balance=1))
            if is_first_attempt:
                is_first_attempt = False
                s.connection().connection.run_async(lambda _: both_have_one_row.wait())
            s.execute(update(Account).where(Account.id == second).values(balance=1))

        return work

    calls = (run(lock(1, 2), idempotent=idempotent), run(lock(2, 1), idempotent=idempotent))
    return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("idempotent", [False, True])
async def test_a_deadlock_is_retried_when_the_work_is_idempotent(
    proxy: TcpProxy, admin: PgConnection, monkeypatch: pytest.MonkeyPatch, idempotent: bool
) -> None:
    # Without a backoff the retry could lock its row before the other transaction wakes up.
    monkeypatch.setattr(random, "uniform", lambda _, longest: longest)
    monkeypatch.setenv("DB_POOL_SIZE", "2")
    reset_engine_cache()
    await admin.execute("ALTER SYSTEM SET deadlock_timeout = '20ms'")
    await admin.execute("SELECT pg_reload_conf()")
    for _ in range(LOST_RESPONSES):
        outcomes = await deadlock(idempotent)
        errors = [outcome for outcome in outcomes if outcome is not None]
        if idempotent:
            assert errors == []
        else:
            [error] = errors
            assert isinstance(error, DatabaseError)
            assert (error.sqlstate, error.failure.status) == ("40P01", 503)
            assert "idempotent=True" in error.failure.hint


async def test_a_serialization_failure_is_retried_when_the_work_is_idempotent(
    proxy: TcpProxy, admin: PgConnection
) -> None:
    calls = 0

    async def write(idempotent: bool) -> None:
        def work(s: Session) -> None:
            nonlocal calls
            calls += 1
            before = balance()(s)
            if calls == 1:
                concurrent_update = admin.execute("UPDATE accounts SET balance = 10 WHERE id = 1")
                s.connection().connection.run_async(lambda _: concurrent_update)
            s.execute(update(Account).where(Account.id == 1).values(balance=before + 1))

        await run(work, isolation="SERIALIZABLE", idempotent=idempotent)

    await write(idempotent=True)
    assert (await read(), calls) == (11, 2)
    calls = 0
    with pytest.raises(DatabaseError) as error_info:
        await write(idempotent=False)
    assert (error_info.value.sqlstate, calls) == ("40001", 1)


async def test_work_that_is_an_async_function_is_a_type_error(proxy: TcpProxy) -> None:
    async def work(s: Session) -> None: ...

    with pytest.raises(TypeError, match="async function"):
        await run(work)  # type: ignore[unused-coroutine]  # the mistake under test


# --- One connection per invocation ---------------------------------------------------------------


async def test_run_inside_a_session_raises_instead_of_deadlocking(
    proxy: TcpProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with asyncio.timeout(30):
        async with session() as s:
            assert await s.scalar(text("SELECT 1")) == 1
            with pytest.raises(InvalidRequestError, match="DB_POOL_SIZE"):
                await read()
            with pytest.raises(InvalidRequestError, match="DB_POOL_SIZE"):
                async with session():
                    pass
    assert await read() == 0
    await dispose()
    monkeypatch.setenv("DB_POOL_SIZE", "2")
    async with session() as s:
        assert await s.scalar(text("SELECT 1")) == 1
        assert await read() == 0


async def test_a_task_started_in_a_session_may_query_after_it_ends(proxy: TcpProxy) -> None:
    closed = asyncio.Event()

    async def read_after_session() -> int:
        await closed.wait()
        return await read()

    async with session():
        task = asyncio.create_task(read_after_session())
    closed.set()
    assert await task == 0


async def test_an_error_in_a_session_is_raised_as_database_error(proxy: TcpProxy) -> None:
    with pytest.raises(DatabaseError) as error_info:
        async with session() as s:
            await s.execute(text("SELECT 1 / 0"))
    assert error_info.value.sqlstate == "22012"
    proxy.refuse()
    proxy.reset_connections()
    with pytest.raises(DatabaseError, match=r"cannot be reached|connection was lost"):
        async with session():
            pass


# --- Errors for the route ------------------------------------------------------------------------

VIOLATIONS: dict[str, tuple[dict[str, Any], int, str | None, str | None]] = {
    "23505": ({"id": 1, "balance": 0}, 409, "accounts_pkey", None),
    "23503": ({"id": 3, "balance": 0, "parent": 77}, 409, "has_parent", None),
    "23514": ({"id": 3, "balance": -1}, 422, "solvent", None),
    "23502": ({"id": 3}, 422, None, "balance"),
}


@pytest.mark.parametrize("sqlstate", VIOLATIONS)
@pytest.mark.parametrize("autocommit", [False, True], ids=["transaction", "autocommit"])
async def test_a_constraint_violation_reaches_the_route_with_its_name(
    proxy: TcpProxy, sqlstate: str, autocommit: bool
) -> None:
    values, status, constraint, column = VIOLATIONS[sqlstate]

    def work(s: Session) -> None:
        s.add(Account(**values))
        s.commit()

    with pytest.raises(ConstraintError) as error_info:
        await (run(work, autocommit=True) if autocommit else run(work))
    error = error_info.value
    assert (error.sqlstate, error.failure.status) == (sqlstate, status)
    assert error.column == column
    if constraint:
        assert error.constraint == constraint


class Transfer(BaseModel):
    source: int
    target: int
    amount: int


app = FastAPI()
install(app)


@app.post("/transfers", status_code=201)
async def transfer(order: Transfer) -> None:
    """Transfer an amount with two SELECT … FOR UPDATE in one transaction."""

    def work(s: Session) -> None:
        for account, amount in ((order.source, -order.amount), (order.target, order.amount)):
            s.get_one(Account, account, with_for_update=True).balance += amount
            s.flush()

    try:
        await run(work)
    except NoResultFound:
        raise HTTPException(404, "There is no such account.") from None


@app.post("/accounts/{account}")
async def open_account(account: int) -> None:
    await run(lambda s: s.add(Account(id=account, balance=0)))


async def test_a_constraint_violation_is_409_or_422_and_stores_nothing(
    proxy: TcpProxy, admin: PgConnection
) -> None:
    await admin.execute("UPDATE accounts SET balance = 5")
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

        async def post(target: int, amount: int) -> int:
            body = {"source": 1, "target": target, "amount": amount}
            response = await client.post("/transfers", json=body)
            assert "solvent" not in response.text
            return response.status_code

        assert [await post(2, 3), await post(2, 3), await post(9, 1)] == [201, 422, 404]
        assert [await read(1), await read(2)] == [2, 8]
        assert (await client.post("/accounts/1")).status_code == 409


async def test_the_documented_transfer_example_works(proxy: TcpProxy, admin: PgConnection) -> None:
    await admin.execute("UPDATE accounts SET balance = 5")
    page = (ROOT / "docs/transactions.md").read_text()
    names: dict[str, Any] = {"__name__": "documented"}
    exec(page.partition("```python\n")[2].partition("```")[0], names)  # noqa: S102  # our own page
    responses = [await names["transfer"](1, 2, 3), await names["transfer"](1, 2, 3)]
    assert responses == ["201", "422: solvent does not allow that"]
    assert (await names["transfer"](9, 1, 1)).startswith("404")
    assert [await read(1), await read(2)] == [2, 8]


async def test_a_missing_row_raises_no_result_found(proxy: TcpProxy) -> None:
    with pytest.raises(NoResultFound):
        await run(lambda s: s.get_one(Account, 99))
    async with AsyncSession(get_engine()) as s:
        assert await s.get(Account, 99) is None
