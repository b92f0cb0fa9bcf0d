"""A function with a second table, as an adopter would add it.

Tests run it in a sandbox and never import it, because that would add its model to the sample's.
"""

from typing import Any

from anyio import from_thread
from fastapi import HTTPException
from sqlalchemy import Integer, String, bindparam, select
from sqlalchemy.orm import Mapped, mapped_column, relationship, selectinload

from handler.app import OrderId, OrderOut, app
from handler.main import handler as handler
from handler.orders import Base, Order
from handler.warm import run


class Customer(Base):
    __tablename__ = "customers"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(120))
    orders: Mapped[list[Order]] = relationship(
        primaryjoin="Customer.name == foreign(Order.customer_name)",
        order_by=Order.id,
        viewonly=True,
    )


WITH_ORDERS = (
    select(Customer)
    .options(selectinload(Customer.orders))
    .where(Customer.id == bindparam("id", type_=Integer))
)


async def find(customer_id: int) -> Customer:
    values = {"id": customer_id}
    customer = await run(
        lambda session: session.scalar(WITH_ORDERS, values), autocommit=True, idempotent=True
    )
    if customer is None:
        raise HTTPException(404, f"There is no customer {customer_id}.")
    return customer


@app.get("/customers/{customer_id}/orders", response_model=list[OrderOut])
async def orders_of(customer_id: OrderId) -> Any:
    return (await find(customer_id)).orders


@app.get("/customers/{customer_id}")
def name_of(customer_id: OrderId) -> str:  # synchronous: it runs on a thread and may block
    return from_thread.run(find, customer_id).name
