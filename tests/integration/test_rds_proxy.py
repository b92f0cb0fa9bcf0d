"""Through a test double of RDS Proxy, each connection uses a valid token and none is pinned."""

import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from handler import orders
from handler.warm import ping
from handler.warm.database import engine
from handler.warm.errors import DatabaseError
from infra.database.roles import APP
from infra.local.stack import DATABASE, Stack
from tests.conftest import reset_engine_cache, set_environment, wait_for_transports_closed
from tests.rds_proxy import RdsProxy

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s/e+cret="}


class Iam:
    """A validator of IAM tokens whose lifetime can be shorter than AWS's 15 minutes."""

    def __init__(self, seconds: float = 900) -> None:
        self.seconds = seconds
        self.port = 0
        self.tokens: set[str] = set()

    def __call__(self, token: str) -> bool:
        self.tokens.add(token)
        query = parse_qs(urlsplit(f"https://{token}").query)
        [signed_at] = query["X-Amz-Date"]
        moment = datetime.strptime(signed_at, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
        age = time.time() - moment.timestamp()
        return (
            token.startswith(f"127.0.0.1:{self.port}/?Action=connect&DBUser={APP}&")
            and "rds-db" in query["X-Amz-Credential"][0]
            and age <= self.seconds
        )


@contextlib.asynccontextmanager
async def rds_proxy(
    stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch, iam: Iam
) -> AsyncIterator[RdsProxy]:
    """Start the test double and configure the handler for it."""
    async with RdsProxy(stack, folder, iam) as proxy:
        iam.port = proxy.port
        environment = (
            stack.environment()
            | KEYS
            | {
                "DB_HOST": proxy.host,
                "DB_PORT": str(proxy.port),
                "DB_AUTH": "iam",
                "DB_SSLMODE": "verify-full",
                "DB_SSLROOTCERT": str(proxy.ca),
                "AWS_DEFAULT_REGION": "eu-central-1",
            }
        )
        set_environment(monkeypatch, environment)
        reset_engine_cache()
        try:
            yield proxy
        finally:
            await engine.dispose()
    await wait_for_transports_closed()


async def test_the_engine_never_pins_a_connection(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PREWARM", "required")
    async with rds_proxy(stack, tmp_path, monkeypatch, Iam()) as proxy:
        await engine.prewarm()
        assert await orders.find(1)
        assert await orders.find(2_000_000_000) is None
        assert await orders.page(None, 0, 20)
        assert await orders.page("paid", 0, 20)
        for _ in range(2):
            await orders.place("", "rds-proxy", "0" * 64, "Amber Bakery", "pending")
        await orders.forget_old_requests()
        await ping()
        for level in ("READ COMMITTED", "SERIALIZABLE"):
            engine_with_level = engine.get_engine().execution_options(isolation_level=level)
            async with engine_with_level.begin() as connection:
                await connection.execute(text("SELECT 1"))
        with pytest.raises(DBAPIError):
            async with engine.get_engine().connect() as connection:
                await connection.execute(text("SELECT 1/0"))
        await engine.dispose()
        assert await orders.find(1)
        assert proxy.logins == 2
        statements = list(proxy.statements)
    assert len(statements) >= 12
    assert not proxy.pins


@pytest.mark.parametrize(
    ("send", "reason"),
    [
        (lambda client: client.execute("SET search_path = public"), "SET search_path"),
        (lambda client: client.execute("SELECT 1; SET jit = off"), "SET jit"),
        (lambda client: client.fetchval("SELECT set_config('jit', 'off', false)"), "set_config"),
        (lambda client: client.prepare("SELECT 1", name="mine"), "PREPARE mine"),
        (lambda client: client.reset(), "UNLISTEN"),
        (lambda client: client.fetchval("SELECT pg_advisory_lock(1)"), "pg_advisory_lock"),
    ],
    ids=["SET", "SET after another", "set_config", "named statement", "driver's reset", "lock"],
)
async def test_the_test_double_pins_as_documented_by_aws(
    stack: Stack, tmp_path: Path, send: Callable[[Any], Awaitable[Any]], reason: str
) -> None:
    async with RdsProxy(stack, tmp_path, lambda password: True) as proxy:
        login: dict[str, Any] = {"host": proxy.host, "port": proxy.port, "password": "x"}
        login |= {"user": APP, "database": DATABASE, "ssl": "require", "statement_cache_size": 0}
        login["server_settings"] = {"client_encoding": "UTF8"}
        unpinned, pinned = [await asyncpg.connect(**login) for _ in range(2)]
        assert await unpinned.fetchval("SELECT 1") == 1
        await send(pinned)
        assert list(proxy.pins) == [2]
        assert reason in proxy.pins[2]
        for client in (unpinned, pinned):
            client.terminate()
    await wait_for_transports_closed()


async def test_every_connection_uses_an_unexpired_token(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = Iam(seconds=1.5)
    reads = 0
    async with rds_proxy(stack, tmp_path, monkeypatch, iam) as proxy:
        started = time.monotonic()
        while reads < 200 or time.monotonic() - started < 3:
            await engine.get_engine().dispose()
            assert await orders.find(1)
            reads += 1
        assert proxy.logins == reads
    assert len(iam.tokens) >= 3  # a token is used for a second


async def test_a_rejected_token_is_one_login_failure(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = Iam(seconds=-1)
    async with rds_proxy(stack, tmp_path, monkeypatch, iam):
        with pytest.raises(DatabaseError, match="authentication failed") as error_info:
            await orders.find(1)
        assert "X-Amz" not in str(error_info.value)
        iam.seconds = 900
        assert await orders.find(1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ssl": False}, "requires TLS"),
        ({"server_settings": {"options": "-c jit=off"}}, "command-line options"),
        ({"server_settings": {"statement_timeout": "5s"}}, "startup parameters"),
        ({"server_settings": {}}, "Unsupported client_encoding: 'utf-8'"),
    ],
)
async def test_the_test_double_rejects_what_rds_proxy_rejects(
    stack: Stack, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    async with RdsProxy(stack, tmp_path, lambda password: True) as proxy:
        login: dict[str, Any] = {"host": proxy.host, "port": proxy.port, "password": "x"}
        login |= {"user": APP, "database": DATABASE, "ssl": "require", **arguments}
        with pytest.raises(asyncpg.PostgresError, match=message):
            await asyncpg.connect(**login)
    await wait_for_transports_closed()
