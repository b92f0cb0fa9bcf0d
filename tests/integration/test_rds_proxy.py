"""Through RDS Proxy's door, with a token for each connection, and nothing asked that pins one."""

import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from handler import engine, orders
from handler.failures import DatabaseError
from infra.database.roles import APP
from infra.local.stack import DATABASE, Stack
from tests.conftest import forget_engine, let_go
from tests.rds_proxy import PINNING, RdsProxy

KEYS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "s/e+cret="}


class Iam:
    """Whether a token is one, for that door, and how old: a real one is 15 minutes at most."""

    def __init__(self, seconds: float = 900) -> None:
        self.seconds = seconds
        self.port = 0
        self.tokens: set[str] = set()

    def __call__(self, token: str) -> bool:
        self.tokens.add(token)
        asked = parse_qs(urlsplit(f"https://{token}").query)
        [signed] = asked["X-Amz-Date"]
        age = (
            time.time()
            - datetime.strptime(signed, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
        )
        return (
            token.startswith(f"127.0.0.1:{self.port}/?Action=connect&DBUser={APP}&")
            and "rds-db" in asked["X-Amz-Credential"][0]
            and age <= self.seconds
        )


@contextlib.asynccontextmanager
async def door(
    stack: Stack, folder: Path, monkeypatch: pytest.MonkeyPatch, iam: Iam
) -> AsyncIterator[RdsProxy]:
    """The handler's environment leads to it."""
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
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        forget_engine()
        try:
            yield proxy
        finally:
            await engine.dispose()
    await let_go()


async def test_over_its_life_the_engine_asks_nothing_that_pins(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PREWARM", "required")
    async with door(stack, tmp_path, monkeypatch, Iam()) as proxy:
        await engine.prewarm()
        assert await orders.find(1)
        assert await orders.find(2_000_000_000) is None
        assert await orders.page(None, 0, 20)
        assert await orders.page("paid", 0, 20)
        for _ in range(2):
            await orders.place("rds-proxy", "0" * 64, "Amber Bakery", "pending")
        await orders.forget_old_requests()
        await engine.ping()
        for level in ("READ COMMITTED", "SERIALIZABLE"):
            writing = engine.engine().execution_options(isolation_level=level)
            async with writing.begin() as connection:
                await connection.execute(text("SELECT 1"))
        with pytest.raises(DBAPIError):
            async with engine.engine().connect() as connection:
                await connection.execute(text("SELECT 1/0"))
        await engine.dispose()
        assert await orders.find(1)
        assert proxy.logins == 2
        asked = list(proxy.asked)
    assert len(asked) >= 12
    assert {name for name, _ in asked} == {""}  # a name is a prepared statement
    assert not [statement for _, statement in asked if PINNING.search(statement)]


async def test_each_connection_has_a_token_that_has_not_expired(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = Iam(seconds=1.5)
    answered = 0
    async with door(stack, tmp_path, monkeypatch, iam) as proxy:
        begun = time.monotonic()
        while answered < 200 or time.monotonic() - begun < 3:
            await engine.engine().dispose()
            assert await orders.find(1)
            answered += 1
        assert proxy.logins == answered
    assert len(iam.tokens) >= 3  # they have a second each


async def test_a_token_that_is_refused_is_one_refusal(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    iam = Iam(seconds=-1)
    async with door(stack, tmp_path, monkeypatch, iam):
        with pytest.raises(DatabaseError, match="authentication failed") as raised:
            await orders.find(1)
        assert "X-Amz" not in str(raised.value)
        iam.seconds = 900
        assert await orders.find(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ssl": False}, "requires TLS"),
        ({"server_settings": {"options": "-c jit=off"}}, "command-line options"),
        ({"server_settings": {"statement_timeout": "5s"}}, "startup parameters"),
        ({"server_settings": {}}, "Unsupported client_encoding: 'utf-8'"),
    ],
)
async def test_the_door_is_as_strict_as_its_documents(
    stack: Stack, tmp_path: Path, arguments: dict[str, Any], said: str
) -> None:
    async with RdsProxy(stack, tmp_path, lambda password: True) as proxy:
        login: dict[str, Any] = {"host": proxy.host, "port": proxy.port, "password": "x"}
        login |= {"user": APP, "database": DATABASE, "ssl": "require", **arguments}
        with pytest.raises(asyncpg.PostgresError, match=said):
            await asyncpg.connect(**login)
    await let_go()
