"""Lists use keyset pagination, and a page reads only the rows it returns."""

import json
from typing import Any
from urllib.parse import urljoin, urlsplit

import pytest
from sqlalchemy.dialects import postgresql

from handler import orders
from tests.conftest import Lambda, PgConnection
from tests.events import http_api


def pages(invoke: Lambda, query: str) -> list[dict[str, Any]]:
    """Follow `next` from the first page to the last and return all pages."""
    url, result = f"/orders?{query}", []
    while True:
        response = invoke(http_api("GET", "/orders", urlsplit(url).query))
        assert response["statusCode"] == 200
        page = json.loads(response["body"])
        result.append(page)
        if page["next"] is None:
            return result
        url = urljoin(url, page["next"])


@pytest.mark.parametrize("limit", [7, 100])
async def test_following_next_returns_every_order_of_a_status_once(
    lambda_handler: Lambda, admin: PgConnection, limit: int
) -> None:
    all_pages = pages(lambda_handler, f"status=shipped&limit={limit}")
    orders_of_pages = [order for page in all_pages for order in page["orders"]]
    rows = await admin.fetch("SELECT id FROM orders WHERE status = 'shipped' ORDER BY id")
    assert [order["id"] for order in orders_of_pages] == [row["id"] for row in rows]
    assert {order["status"] for order in orders_of_pages} == {"shipped"}


def test_a_page_that_ends_with_the_last_order_has_no_next(own_stack_handler: Lambda) -> None:
    all_pages = pages(own_stack_handler, "limit=100")
    assert [len(page["orders"]) for page in all_pages] == [100] * 10
    assert [order["id"] for page in all_pages for order in page["orders"]] == list(range(1, 1001))


def test_the_default_page_size_is_twenty(lambda_handler: Lambda) -> None:
    response = lambda_handler(http_api("GET", "/orders"))
    assert len(json.loads(response["body"])["orders"]) == 20


def test_an_unknown_status_gives_an_empty_page(lambda_handler: Lambda) -> None:
    response = lambda_handler(http_api("GET", "/orders", "status=a%20b%27%3B--"))
    assert json.loads(response["body"]) == {"orders": [], "next": None}


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=101", "limit=x", "after=-1", "after=2147483648", "status="]
)
def test_invalid_page_parameters_have_status_422(lambda_handler: Lambda, query: str) -> None:
    response = lambda_handler(http_api("GET", "/orders", query))
    assert response["statusCode"] == 422
    assert json.loads(response["body"])["detail"].startswith(query.partition("=")[0])


async def test_a_page_among_100_000_orders_reads_only_its_rows(own_admin: PgConnection) -> None:
    await own_admin.execute(
        "INSERT INTO orders (customer_name, status) SELECT 'Jade Kites',"
        " CASE WHEN n % 1000 = 0 THEN 'lost' ELSE 'paid' END FROM generate_series(1, 99000) AS n"
    )
    await own_admin.execute("ANALYZE orders")
    for statement, values, index in (
        (orders.BY_ID, (50_000,), "orders_pkey"),
        (orders.PAGE, (50_000, 21), "orders_pkey"),
        (orders.PAGE_OF_STATUS, (50_000, "lost", 21), "ix_orders_status_id"),
        (orders.PAGE_OF_STATUS, (90_000, "paid", 21), None),  # either index will do
    ):
        sql = str(statement.compile(dialect=postgresql.asyncpg.dialect()))  # type: ignore[no-untyped-call]  # untyped in SQLAlchemy
        [[plan]] = await own_admin.fetch(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *values)
        scan = json.loads(plan)[0]["Plan"]
        while "Plans" in scan:
            scan = scan["Plans"][0]
        assert scan["Node Type"] in ("Index Scan", "Index Only Scan"), sql
        assert index is None or scan["Index Name"] == index, sql
        assert scan["Actual Rows"] <= 21
        assert scan.get("Rows Removed by Filter", 0) <= 21
