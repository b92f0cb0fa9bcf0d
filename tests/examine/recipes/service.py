"""What the recipes have in common: where the database is, and the answer to `GET /orders/{id}`."""

import json
from typing import Any

from sqlalchemy import URL

from tests.benchmarks.baselines import login

QUERY = "SELECT id, customer_name, status FROM orders WHERE id = "


def url(driver: str, **query: str) -> URL:
    parts = login()
    return URL.create(
        driver,
        parts["user"],
        parts["password"],
        parts["host"],
        parts["port"],
        parts["database"],
        query=query,
    )


def order_id(event: dict[str, Any]) -> int:
    return int(event["rawPath"].rpartition("/")[2])


def answer(order: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "statusCode": 404 if order is None else 200,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(order),
    }
