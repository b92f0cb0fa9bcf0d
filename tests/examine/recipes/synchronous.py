"""SQLAlchemy's synchronous engine on psycopg 3, in a global variable, with the pool's defaults."""

from typing import Any

from sqlalchemy import create_engine, text

from tests.examine.recipes.service import QUERY, order_id, response, url

engine = create_engine(url("postgresql+psycopg", sslmode="disable"))


def handler(event: dict[str, Any], context: Any) -> dict[str, Any]:
    with engine.connect() as connection:
        statement = text(f"{QUERY}:id")
        row = connection.execute(statement, {"id": order_id(event)}).mappings().first()
    return response(None if row is None else dict(row))
