"""`Order` and its queries. Replace this file with your own tables; it knows no HTTP.

Each query is one statement, so in AUTOCOMMIT one round trip, with no transaction for a frozen
sandbox to leave open. Each parameter is bounded before it comes here: one that fails in the driver
fails between Parse and Sync, and PgBouncer keeps the server connection pinned to the client.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import DateTime, Index, Integer, String, bindparam, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handler.engine import run
from handler.pinned import Pinned

#: The largest id that Postgres' integer holds.
MAX_ID = 2_147_483_647


class Base(DeclarativeBase):
    pass


class Order(Base):
    """One order, as the table `orders` holds it."""

    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(Pinned(Integer()), primary_key=True)
    customer_name: Mapped[str] = mapped_column(Pinned(String(120)))
    status: Mapped[str] = mapped_column(
        Pinned(String(32)), default="pending", server_default="pending"
    )

    # A page of one status reads its own rows in order, and no others.
    __table_args__ = (Index("ix_orders_status_id", "status", "id"),)


class OrderRequest(Base):
    """An `Idempotency-Key` that was answered: with which order, to which body."""

    __tablename__ = "order_requests"

    key: Mapped[str] = mapped_column(Pinned(String(255)), primary_key=True)
    body_sha256: Mapped[str] = mapped_column(Pinned(String(64)))
    order_id: Mapped[int] = mapped_column(
        Pinned(Integer()), server_default=text("nextval('orders_id_seq')")
    )
    created_at: Mapped[datetime] = mapped_column(
        Pinned(DateTime(timezone=True)), server_default=func.now(), index=True
    )


BY_ID = select(Order).where(Order.id == bindparam("id", type_=Integer))

# By key, not by OFFSET: a page costs what it shows, however far down it is.
PAGE = (
    select(Order)
    .where(Order.id > bindparam("after", type_=Integer))
    .order_by(Order.id)
    .limit(bindparam("limit", type_=Integer))
)
PAGE_OF_STATUS = PAGE.where(Order.status == bindparam("status", type_=String))

# Claims the key and places the order, or finds who claimed it: all or nothing, whoever else sends
# the same key at the same time (ON CONFLICT DO UPDATE waits for him, and sees what he wrote; DO
# NOTHING would not). An updated row has an xmax. The id is a default: nextval pins RDS Proxy.
PLACE = text("""
WITH claim AS (
  INSERT INTO order_requests AS request (key, body_sha256)
  VALUES (CAST(:key AS text), CAST(:body_sha256 AS text))
  ON CONFLICT (key) DO UPDATE SET key = request.key
  RETURNING request.order_id, request.body_sha256, request.xmax = 0 AS is_new
), placed AS (
  INSERT INTO orders (id, customer_name, status)
  SELECT order_id, CAST(:customer_name AS text), CAST(:status AS text) FROM claim WHERE is_new
)
SELECT CAST(order_id AS integer) AS order_id, is_new,
       body_sha256 = CAST(:body_sha256 AS text) AS is_same_body
FROM claim
""")

# A key is remembered for a day at the least: longer than any caller goes on retrying.
FORGET = text("""
WITH forgotten AS (
  DELETE FROM order_requests WHERE key IN (
    SELECT key FROM order_requests WHERE created_at < now() - interval '24 hours'
    ORDER BY created_at LIMIT 1000)
  RETURNING key
)
SELECT CAST(count(*) AS integer) FROM forgotten
""")


@dataclass(frozen=True)
class Placed:
    """What came of placing an order: `is_new` the first time a key is sent, `is_same_body` False
    where the key stands for another order."""

    order_id: int
    is_new: bool
    is_same_body: bool


async def find(order_id: int) -> Order | None:
    """The order of that id (1 to MAX_ID), or None."""
    return await run(lambda session: session.scalar(BY_ID, {"id": order_id}))


async def page(status: str | None, after: int, limit: int) -> Sequence[Order]:
    """Up to `limit` orders with ids above `after`, by id; of one status, or of any."""
    query = PAGE if status is None else PAGE_OF_STATUS
    values = {"after": after, "limit": limit, "status": status}
    return await run(lambda session: session.scalars(query, values).all())


async def place(key: str, body_sha256: str, customer_name: str, status: str) -> Placed:
    """Place an order once for each `key`, however often it is sent, for a day at least."""
    order = {"customer_name": customer_name, "status": status}
    sent = {"key": key, "body_sha256": body_sha256, **order}
    row = await run(lambda session: session.execute(PLACE, sent).one())
    return Placed(row.order_id, row.is_new, row.is_same_body)


async def forget_old_requests() -> int:
    """Drop up to 1,000 keys older than a day; how many it was."""
    return int(await run(lambda session: session.execute(FORGET).scalar_one()))
