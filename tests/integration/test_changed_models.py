"""Model columns are read correctly after a migration changes their types."""

from decimal import Decimal

import pytest
from sqlalchemy import Float, Integer, Numeric, select, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from infra.database.roles import APP
from infra.local.stack import Stack
from tests.conftest import PgConnection
from tests.integration.engines import handler_engine


class Base(DeclarativeBase):
    pass


class Amount(Base):
    __tablename__ = "amounts"

    id: Mapped[int] = mapped_column(Integer, primary_key=True)
    exact: Mapped[Decimal] = mapped_column(Numeric(30, 10))
    rough: Mapped[float] = mapped_column(Float)


async def values(engine: AsyncEngine) -> tuple[Decimal, float]:
    async with engine.connect() as connection:
        return tuple((await connection.execute(select(Amount.exact, Amount.rough))).one())  # type: ignore[return-value]  # a row of two


@pytest.mark.parametrize(
    "is_new_connection", [False, True], ids=["same connection", "new connection"]
)
async def test_a_float_column_changed_to_numeric_is_read_exactly(
    own_stack: Stack, is_new_connection: bool, own_admin: PgConnection
) -> None:
    await own_admin.execute(
        "CREATE TABLE amounts (id integer, exact double precision, rough double precision);"
        f"INSERT INTO amounts VALUES (1, 1, 1.5); GRANT SELECT ON amounts TO {APP}"
    )
    async with handler_engine(own_stack.settings()) as engine:
        assert await values(engine) == (Decimal(1), 1.5)
        await own_admin.execute(
            "ALTER TABLE amounts ALTER exact TYPE numeric, ALTER rough TYPE numeric;"
            "UPDATE amounts SET exact = 12345678901234567890.1234567891"
        )
        if is_new_connection:
            await engine.dispose()
        else:
            with pytest.raises(Exception, match="cached statement plan"):
                await values(engine)
        exact, rough = await values(engine)
        assert exact == Decimal("12345678901234567890.1234567891")
        assert (type(rough), rough) == (float, 1.5)
        async with engine.connect() as connection:
            with_comment = text("SELECT id FROM amounts --\x01\n WHERE id = 2")
            assert (await connection.execute(with_comment)).all() == []
