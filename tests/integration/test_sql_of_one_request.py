"""The SQL of one request is in the log for who knows the token, and of no other request."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from handler import engine
from handler.app import app
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import Lambda, cold_runtime, forget_engine
from tests.events import http_api

TOKEN = "a token of sixteen and more"


@pytest.fixture
def with_token(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (stack.environment() | {"DB_SQL_TOKEN": TOKEN}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def invoke(with_token: None) -> Iterator[Lambda]:
    with cold_runtime() as invoke:
        yield invoke


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "handler.sql"]


def test_it_is_logged_for_the_token_and_not_after_it(
    invoke: Lambda, caplog: pytest.LogCaptureFixture
) -> None:
    assert invoke(http_api("GET", "/orders/876"))["statusCode"] == 200
    assert not said(caplog)
    invoke(http_api("GET", "/orders/876", x_log_sql=TOKEN))
    [statement] = said(caplog)
    assert statement.startswith("SELECT CAST(orders.id AS INTEGER)")
    assert "876" not in caplog.text
    assert caplog.records[0].levelno == logging.DEBUG
    invoke(http_api("GET", "/orders/876"))
    invoke(http_api("GET", "/orders/876", x_log_sql="another token of sixteen"))
    assert len(said(caplog)) == 1


async def test_it_is_never_logged_for_its_neighbours(
    with_token: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "5")
    forget_engine()
    try:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            await asyncio.gather(
                *(client.get(f"/orders/{n}") for n in range(1, 20)),
                client.get("/orders?status=paid", headers={"X-Log-SQL": TOKEN}),
                *(client.get(f"/orders/{n}") for n in range(1, 20)),
            )
    finally:
        await engine.dispose()
    [statement] = said(caplog)
    assert "orders.status" in statement
    assert "paid" not in statement


@pytest.mark.parametrize("header", ["", "None", TOKEN])
def test_without_a_token_in_the_settings_it_is_off(
    header: str, lambda_handler: Lambda, caplog: pytest.LogCaptureFixture
) -> None:
    assert lambda_handler(http_api("GET", "/orders/1", x_log_sql=header))["statusCode"] == 200
    assert not said(caplog)


async def test_on_lambda_it_is_in_the_function_s_log(stack: Stack, tmp_path: Path) -> None:
    environment = stack.environment() | {"DB_SQL_TOKEN": TOKEN}
    async with Fleet(environment, logs=tmp_path) as fleet:
        for header in ("", TOKEN, ""):
            await fleet.invoke(http_api("GET", "/orders/1", x_log_sql=header))
    log = (tmp_path / "sandbox-1.log").read_text()
    assert log.count("SELECT") == 1
    assert TOKEN not in log
