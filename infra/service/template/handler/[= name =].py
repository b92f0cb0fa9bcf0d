"""The table `[= name =]` and its queries, without HTTP.

`run(work)` calls `work` once, in a transaction. With `autocommit=True` a single statement takes
one round trip; `idempotent=True` allows a second call after a lost connection.
"""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import DateTime, MetaData, String, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from handler.warm import run


class Base(DeclarativeBase):
    # Each constraint has a name, so that a migration can drop it.
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class [= type_name =](Base):
    """A row of the table."""

    __tablename__ = "[= name =]"

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    text: Mapped[str] = mapped_column(String(200))
    changed_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.now(), onupdate=func.now()
    )


async def find(key: str) -> [= type_name =] | None:
    query = select([= type_name =]).where([= type_name =].key == key)
    return await run(lambda s: s.scalar(query), autocommit=True, idempotent=True)


async def page(after: str, limit: int) -> Sequence[[= type_name =]]:
    """Return up to `limit` rows with keys above `after`, ordered by key."""
    table = [= type_name =]
    query = select(table).where(table.key > after).order_by(table.key).limit(limit)
    return await run(lambda s: s.scalars(query).all(), autocommit=True, idempotent=True)


async def put(key: str, text: str) -> None:
    """Insert the row, or replace its text. Idempotent: a second call leaves the same row."""
    statement = insert([= type_name =]).values(key=key, text=text)
    statement = statement.on_conflict_do_update(
        index_elements=["key"], set_={"text": text, "changed_at": func.now()}
    )
    await run(lambda s: s.execute(statement), autocommit=True, idempotent=True)
