"""What the callers write and read, and how the database shows what became of it.

Owns the difference between the sample's orders and the rows of another service (`ROOT=`).
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from infra.local.service import Service, Traffic
from tests.events import Event, http_api

#: The rows of these keys and of these names.
KEYS = """SELECT key, order_id, customer_name FROM order_requests LEFT JOIN orders ON id = order_id
WHERE key = ANY($1)"""
NAMES = "SELECT customer_name FROM orders WHERE customer_name = ANY($1)"


@dataclass
class Write:
    """A write, and the body of its answer once it has one."""

    key: str
    value: str
    answer: dict[str, Any] | None = None


class Kind(Protocol):
    """The writes of one service."""

    def write(self, write: Write) -> Event:
        """The event that sends it."""

    def read(self, write: Write) -> Event:
        """The event that asks for what was written."""

    def is_of(self, write: Write, body: Any) -> bool:
        """Whether `body` is what was written."""

    async def count_lost_and_duplicated(
        self, admin: Any, writes: Sequence[Write]
    ) -> tuple[int, int]:
        """Rows lost and rows doubled."""


class Orders:
    """The sample's: an idempotency key is one order, as it was sent."""

    def write(self, write: Write) -> Event:
        body = json.dumps({"customer_name": write.value})
        return http_api("POST", "/orders", body=body, idempotency_key=write.key)

    def read(self, write: Write) -> Event:
        assert write.answer is not None
        return http_api("GET", f"/orders/{write.answer['id']}")

    def is_of(self, write: Write, body: Any) -> bool:
        assert write.answer is not None
        return (body["id"], body["customer_name"]) == (write.answer["id"], write.value)

    async def count_lost_and_duplicated(
        self, admin: Any, writes: Sequence[Write]
    ) -> tuple[int, int]:
        keys = [tuple(row) for row in await admin.fetch(KEYS, [each.key for each in writes])]
        orders = await admin.fetch(NAMES, [each.value for each in writes])
        expected = {(each.key, (each.answer or {}).get("id"), each.value) for each in writes}
        kept = expected & set(keys)
        return len(expected - kept), max(len(keys), len(orders)) - len(kept)


@dataclass(frozen=True)
class Rows:
    """Those of `[tool.warm-engine.traffic]`: a key is one row with its value."""

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

    async def count_lost_and_duplicated(
        self, admin: Any, writes: Sequence[Write]
    ) -> tuple[int, int]:
        found = await admin.fetch(self.traffic.rows, [each.key for each in writes])
        rows = [(str(key), str(value)) for key, value in found]
        expected = {(each.key, each.value) for each in writes}
        kept = expected & set(rows)
        return len(expected - kept), len(rows) - len(kept)


def _filled(template: Any, write: Write) -> Any:
    """Replace `{key}` and `{value}` in each string of `template`, at any depth."""
    if isinstance(template, dict):
        return {name: _filled(each, write) for name, each in template.items()}
    if isinstance(template, list):
        return [_filled(each, write) for each in template]
    if isinstance(template, str):
        return template.replace("{key}", write.key).replace("{value}", write.value)
    return template


def _contains(body: Any, value: str) -> bool:
    """Whether `value` is in `body`, at any depth."""
    if isinstance(body, dict):
        return any(_contains(each, value) for each in body.values())
    if isinstance(body, list):
        return any(_contains(each, value) for each in body)
    return bool(body == value)


def kind_of(service: Service) -> Kind:
    return Rows(service.traffic) if service.traffic else Orders()
