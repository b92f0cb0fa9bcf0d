"""Computations with plain columns are correct. An earlier, wrapped column type got them wrong."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import DateTime, Integer, Numeric, func, select, text, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handler.warm.database.engine import create_engine
from infra.database.roles import OWNER
from infra.local.stack import Stack


class Base(DeclarativeBase):
    pass


class Product(Base):
    __tablename__ = "products"

    id: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int] = mapped_column(Integer, default=5)
    price: Mapped[Decimal] = mapped_column(Numeric(12, 2), default=Decimal("10.00"))
    flag: Mapped[bool] = mapped_column(default=True)
    at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), default=datetime(2024, 1, 2, tzinfo=UTC)
    )
    about: Mapped[dict[str, Any] | None] = mapped_column(JSONB)


@pytest.fixture(params=["direct", "pooled"])
async def session(own_stack: Stack, request: pytest.FixtureRequest) -> AsyncIterator[AsyncSession]:
    through = own_stack.pgbouncer if request.param == "pooled" else None
    engine = create_engine(
        own_stack.settings(user=OWNER, through=None), isolation_level="AUTOCOMMIT"
    )
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        grant = "GRANT ALL ON products TO appuser; GRANT ALL ON products_id_seq TO appuser"
        for statement in grant.split("; "):
            await connection.execute(text(statement))
    await engine.dispose()
    engine = create_engine(own_stack.settings(through=through), isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session:
        session.add(Product(id=1))
        await session.commit()
        yield session
    await engine.dispose()


async def test_dividing_an_integer_column_by_two_gives_a_fraction(session: AsyncSession) -> None:
    assert await session.scalar(select(Product.n * 0.5)) == 2.5


async def test_a_numeric_column_is_multiplied_exactly(session: AsyncSession) -> None:
    await session.execute(update(Product).values(price=Product.price * 1.015))
    assert await session.scalar(select(Product.price)) == Decimal("10.15")


async def test_an_integer_column_compares_with_a_fraction(session: AsyncSession) -> None:
    assert (await session.scalars(select(Product.id).where(Product.n < 5.5))).all() == [1]


async def test_an_omitted_json_value_is_null(session: AsyncSession) -> None:
    missing = select(Product.id).where(Product.about.is_(None))
    assert (await session.scalars(missing)).all() == [1]


async def test_booleans_timestamps_and_json_have_their_operators(session: AsyncSession) -> None:
    await session.execute(update(Product).values(about={"a": 1}))
    query = select(Product.at + timedelta(days=1)).where(
        Product.flag.is_(True), Product.about.has_key("a")
    )
    assert await session.scalar(query) == datetime(2024, 1, 3, tzinfo=UTC)


async def test_a_sum_can_exceed_an_integer(session: AsyncSession) -> None:
    await session.execute(update(Product).values(n=2**31 - 1))
    session.add(Product(id=2, n=2**31 - 1))
    await session.commit()
    assert await session.scalar(select(func.sum(Product.n))) == 2**32 - 2
