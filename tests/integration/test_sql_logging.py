"""SQL is logged only for a request with the token, not for other requests."""

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from httpx import ASGITransport, AsyncClient

from handler.app import app
from handler.warm.database import engine
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import ColdHandler, Lambda, reset_engine_cache, set_environment
from tests.events import http_api

TOKEN = "a token of sixteen and more"


@pytest.fixture
def with_token(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, stack.environment() | {"DB_SQL_TOKEN": TOKEN})


@pytest.fixture
def invoke(with_token: None) -> Iterator[Lambda]:
    with ColdHandler() as invoke:
        yield invoke


def logged_sql(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.name == "handler.sql"]


def test_sql_is_logged_only_for_the_request_with_the_token(
    invoke: Lambda, caplog: pytest.LogCaptureFixture
) -> None:
    assert invoke(http_api("GET", "/orders/876"))["statusCode"] == 200
    assert not logged_sql(caplog)
    invoke(http_api("GET", "/orders/876", x_log_sql=TOKEN))
    [statement] = logged_sql(caplog)
    assert statement.startswith("SELECT orders.id, orders.customer_name")
    assert "876" not in caplog.text
    assert caplog.records[0].levelno == logging.DEBUG
    invoke(http_api("GET", "/orders/876"))
    invoke(http_api("GET", "/orders/876", x_log_sql="another token of sixteen"))
    assert len(logged_sql(caplog)) == 1


async def test_sql_of_concurrent_requests_is_not_logged(
    with_token: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DB_POOL_SIZE", "5")
    reset_engine_cache()
    try:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as client:
            await asyncio.gather(
                *(client.get(f"/orders/{order_id}") for order_id in range(1, 20)),
                client.get("/orders?status=paid", headers={"X-Log-SQL": TOKEN}),
                *(client.get(f"/orders/{order_id}") for order_id in range(1, 20)),
            )
    finally:
        await engine.dispose()
    [statement] = logged_sql(caplog)
    assert "orders.status" in statement
    assert "paid" not in statement


@pytest.mark.parametrize("header", ["", "None", TOKEN])
def test_sql_logging_is_off_without_a_configured_token(
    header: str, lambda_handler: Lambda, caplog: pytest.LogCaptureFixture
) -> None:
    assert lambda_handler(http_api("GET", "/orders/1", x_log_sql=header))["statusCode"] == 200
    assert not logged_sql(caplog)


async def test_sql_is_in_the_function_log_on_lambda(stack: Stack, tmp_path: Path) -> None:
    async with Fleet(stack.environment() | {"DB_SQL_TOKEN": TOKEN}, logs=tmp_path) as fleet:
        for header in ("", TOKEN, ""):
            await fleet.invoke(http_api("GET", "/orders/1", x_log_sql=header))
    log = (tmp_path / "sandbox-1.log").read_text()
    assert log.count("SELECT") == 1
    assert TOKEN not in log
