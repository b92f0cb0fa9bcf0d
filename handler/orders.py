"""`Order` and its queries. Replace this file with your own tables; it does not depend on HTTP.

Each query is one idempotent statement, so it runs in autocommit: one round trip. The routes
validate every parameter first, because a value that does not fit its column would be a 500.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, Index, Integer, String, Text, bindparam, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handler.warm import run, seconds_left

#: The largest value of Postgres' `integer` type.
MAX_ID = 2_147_483_647


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A row of the table `orders`."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(primary_key=True)
    customer_name: Mapped[str] = mapped_column(String(120))
    status: Mapped[str] = mapped_column(String(32), default="pending", server_default="pending")

    # For pages of one status: only rows with this status are read, in the order of their ids.
    __table_args__ = (Index("ix_orders_status_id", "status", "id"),)


class OrderRequest(Base):
    """An `Idempotency-Key` that was used, with the order it created and a digest of the body.

    A key normally has two rows: one for the caller and key, and one for the key alone, which
    versions before migration 0006 look up. `caller` is NULL only in rows of those versions.
    """

    __tablename__ = "order_requests"

    # COLLATE "C": with a locale's rules, an update of the C library may corrupt the unique index.
    key: Mapped[str] = mapped_column(
        String(255).with_variant(String(255, collation="C"), "postgresql"), primary_key=True
    )
    body_sha256: Mapped[str] = mapped_column(String(64))
    order_id: Mapped[int] = mapped_column(
        Integer(), server_default=text("nextval('orders_id_seq')")
    )
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), index=True
    )
    caller: Mapped[str | None] = mapped_column(Text())


BY_ID = select(Order).where(Order.id == bindparam("id", type_=Integer))

# Keyset pagination: unlike with OFFSET, the cost of a page does not grow with its position.
PAGE = (
    select(Order)
    .where(Order.id > bindparam("after", type_=Integer))
    .order_by(Order.id)
    .limit(bindparam("limit", type_=Integer))
)
PAGE_OF_STATUS = PAGE.where(Order.status == bindparam("status", type_=String))

# Inserts the key and the order atomically, or returns the order that the key created. It is a
# function in the database (migration 0006), because only a function does this in one round trip
# without using up an id for a known key.
PLACE = text("""
SELECT order_id, is_new, is_same_body FROM place_order(
  CAST(:caller AS text), CAST(:key AS text), CAST(:body_sha256 AS text),
  CAST(:customer_name AS text), CAST(:status AS text))
""")

#: How many rows one statement deletes, so that it stays below `statement_timeout`.
BATCH = 1000
#: Start no further batch with less than this left until the deadline, in seconds.
FORGET_MARGIN = 2.0
# A key is kept for at least a day, longer than callers retry.
FORGET = text("""
WITH forgotten AS (
  DELETE FROM order_requests WHERE key IN (
    SELECT key FROM order_requests WHERE created_at < now() - interval '24 hours'
    ORDER BY created_at LIMIT CAST(:batch AS integer))
  RETURNING key
)
SELECT CAST(count(*) AS integer) FROM forgotten
""")


@dataclass(frozen=True)
class Placed:
    """The result of placing an order. `is_new`: the key was not known. `is_same_body`: False if the
    key was used for a different order."""

    order_id: int
    is_new: bool
    is_same_body: bool


async def find(order_id: int) -> Order | None:
    """Return the order with that id (1 to MAX_ID), or None."""
    values = {"id": order_id}
    return await run(lambda s: s.scalar(BY_ID, values), autocommit=True, idempotent=True)


async def page(status: str | None, after: int, limit: int) -> Sequence[Order]:
    """Return up to `limit` orders with ids above `after`, in the order of ids.

    If `status` is None, orders of any status are returned.
    """
    query = PAGE if status is None else PAGE_OF_STATUS
    values = {"after": after, "limit": limit, "status": status}
    return await run(lambda s: s.scalars(query, values).all(), autocommit=True, idempotent=True)


async def place(caller: str, key: str, body_sha256: str, customer_name: str, status: str) -> Placed:
    """Place one order per `caller` and `key`, however often it is called, for at least a day.

    `caller` is empty for unauthenticated callers.
    """
    order = {"customer_name": customer_name, "status": status}
    values = {"caller": caller, "key": key, "body_sha256": body_sha256, **order}
    row = await run(lambda s: s.execute(PLACE, values).one(), autocommit=True, idempotent=True)
    return Placed(row.order_id, row.is_new, row.is_same_body)


async def forget_old_requests() -> int:
    """Delete rows of keys older than a day, until shortly before the deadline. Return how many."""
    forgotten = 0
    while (seconds := seconds_left()) is None or seconds > FORGET_MARGIN:
        count = await run(
            lambda s: s.scalar(FORGET, {"batch": BATCH}), autocommit=True, idempotent=True
        )
        forgotten += count
        if count < BATCH:
            break
    return forgotten
