"""`Order` and its queries. Replace this file with your own tables; it knows no HTTP."""

from sqlalchemy import Integer, String, bindparam, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handler.engine import Pinned, session

#: The largest id that Postgres' integer holds. A larger one must never reach the driver: it fails
#: between Parse and Sync, and PgBouncer then keeps the server connection pinned to the client.
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


BY_ID = select(Order).where(Order.id == bindparam("id", type_=Integer))


async def find(order_id: int) -> Order | None:
    """The order of that id (1 to MAX_ID), or None. One round trip on a warm connection."""
    async with session() as db:
        return await db.scalar(BY_ID, {"id": order_id})
