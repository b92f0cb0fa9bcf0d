"""The writes and reads of the callers, and the queries that find lost and duplicated rows.

Owns the difference between the sample's orders and the rows of another service (`ROOT=`).
"""

import json
from dataclasses import dataclass
from typing import Any, Protocol

from infra.local.service import Service, Traffic
from tests.events import Event, http_api

#: Queries for the rows of given keys, and of given names.
KEYS = """SELECT key, order_id, customer_name FROM order_requests LEFT JOIN orders ON id = order_id
WHERE key = ANY($1)"""
NAMES = "SELECT customer_name FROM orders WHERE customer_name = ANY($1)"


@dataclass
class Write:
    """A write, and the body of its response once there is one."""

    key: str
    value: str
    response: dict[str, Any] | None = None


class Kind(Protocol):
    """The writes of one service."""

    def write(self, write: Write) -> Event:
        """Return the event that sends the write."""

    def read(self, write: Write) -> Event:
        """Return the event that reads what was written."""

    def is_of(self, write: Write, body: Any) -> bool:
        """Return whether `body` contains what was written."""

    async def count_lost_and_duplicated(self, admin: Any, writes: list[Write]) -> tuple[int, int]:
        """Return the numbers of lost and of duplicated rows."""


class Orders:
    """The sample's writes: each idempotency key has one order, as it was sent."""

    def write(self, write: Write) -> Event:
        body = json.dumps({"customer_name": write.value})
        return http_api("POST", "/orders", body=body, idempotency_key=write.key)

    def read(self, write: Write) -> Event:
        assert write.response is not None
        return http_api("GET", f"/orders/{write.response['id']}")

    def is_of(self, write: Write, body: Any) -> bool:
        assert write.response is not None
        return (body["id"], body["customer_name"]) == (write.response["id"], write.value)

    async def count_lost_and_duplicated(self, admin: Any, writes: list[Write]) -> tuple[int, int]:
        keys = [tuple(row) for row in await admin.fetch(KEYS, [write.key for write in writes])]
        orders = await admin.fetch(NAMES, [write.value for write in writes])
        expected = {(write.key, (write.response or {}).get("id"), write.value) for write in writes}
        stored = expected & set(keys)
        return len(expected - stored), max(len(keys), len(orders)) - len(stored)


@dataclass(frozen=True)
class Rows:
    """The writes of `[tool.warm-engine.traffic]`: each key has one row, with its value."""

    traffic: Traffic

    def write(self, write: Write) -> Event:
        body = json.dumps(_filled(self.traffic.write_body, write))
        return self._request(self.traffic.write_method, self.traffic.write_path, write, body)

    def read(self, write: Write) -> Event:
        return self._request("GET", self.traffic.read_path, write)

    def _request(self, method: str, path: str, write: Write, body: str = "") -> Event:
        event = http_api(method, _filled(path, write), body=body)
        event["headers"] |= {name.lower(): value for name, value in self.traffic.headers.items()}
        return event

    def is_of(self, write: Write, body: Any) -> bool:
        return _contains(body, write.value)

    async def count_lost_and_duplicated(self, admin: Any, writes: list[Write]) -> tuple[int, int]:
        records = await admin.fetch(self.traffic.rows, [write.key for write in writes])
        rows = [(str(key), str(value)) for key, value in records]
        expected = {(write.key, write.value) for write in writes}
        stored = expected & set(rows)
        return len(expected - stored), len(rows) - len(stored)


def _filled(template: Any, write: Write) -> Any:
    """Replace `{key}` and `{value}` in each string of `template`, at any depth."""
    if isinstance(template, dict):
        return {name: _filled(member, write) for name, member in template.items()}
    if isinstance(template, list):
        return [_filled(element, write) for element in template]
    if isinstance(template, str):
        return template.replace("{key}", write.key).replace("{value}", write.value)
    return template


def _contains(body: Any, value: str) -> bool:
    """Return whether `value` is in `body`, at any depth."""
    if isinstance(body, dict):
        return any(_contains(member, value) for member in body.values())
    if isinstance(body, list):
        return any(_contains(element, value) for element in body)
    return bool(body == value)


def kind_of(service: Service) -> Kind:
    return Rows(service.traffic) if service.traffic else Orders()
