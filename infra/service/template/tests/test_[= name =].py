"""Tests of the routes, in this process and in execution environments, and of the migrations."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

PATH = "/[= name =]"


def test_get_returns_a_row_after_put(lambda_handler: Any) -> None:
    put = lambda_handler.request("PUT", f"{PATH}/a", json={"text": "one"})
    assert (put.status, put.json()) == (200, {"key": "a", "text": "one"})
    assert lambda_handler.request("GET", f"{PATH}/a").json() == {"key": "a", "text": "one"}


def test_a_second_put_replaces_the_text(lambda_handler: Any) -> None:
    for text in ("one", "two"):
        assert lambda_handler.request("PUT", f"{PATH}/b", json={"text": text}).status == 200
    assert lambda_handler.request("GET", f"{PATH}/b").json()["text"] == "two"


def test_a_page_contains_the_rows_after_a_key(lambda_handler: Any) -> None:
    for key in ("page-1", "page-2", "page-3"):
        lambda_handler.request("PUT", f"{PATH}/{key}", json={"text": key})
    page = lambda_handler.request("GET", PATH, query={"after": "page-1", "limit": 2})
    assert [row["key"] for row in page.json()] == ["page-2", "page-3"]


def test_an_unknown_key_is_404_and_an_invalid_body_422(lambda_handler: Any) -> None:
    assert lambda_handler.request("GET", f"{PATH}/unknown").status == 404
    assert lambda_handler.request("PUT", f"{PATH}/c", json={"other": 1}).status == 422


def test_execution_environments_share_the_database(fleet: Any) -> None:
    def put(number: int) -> int:
        path = f"{PATH}/many-{number}"
        return int(fleet.request("PUT", path, json={"text": str(number)}).status)

    with ThreadPoolExecutor(3) as callers:
        assert set(callers.map(put, range(12))) == {200}
    assert fleet.request("GET", f"{PATH}/many-11", cold=True).json()["text"] == "11"


def test_the_migrations_create_the_tables_of_the_models(alembic: Any) -> None:
    alembic("check")
