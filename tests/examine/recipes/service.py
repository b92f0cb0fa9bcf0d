"""Code that the recipes share: the database's URL, and the response to `GET /orders/{id}`."""

import json
from typing import Any

from sqlalchemy import URL

from tests.benchmarks.baselines import login

QUERY = "SELECT id, customer_name, status FROM orders WHERE id = "


def url(driver: str, **query: str) -> URL:
    options = login()
    return URL.create(
        driver,
        options["user"],
        options["password"],
        options["host"],
        options["port"],
        options["database"],
        query=query,
    )


def order_id(event: dict[str, Any]) -> int:
    return int(event["rawPath"].rpartition("/")[2])


def response(order: dict[str, Any] | None) -> dict[str, Any]:
    return {
        "statusCode": 404 if order is None else 200,
        "headers": {"content-type": "application/json"},
        "body": json.dumps(order),
    }
