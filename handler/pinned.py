"""Column types that stay what they were when a migration changes a column under a warm runtime."""

from typing import Any, TypeVar

from sqlalchemy import ColumnElement, cast
from sqlalchemy.types import TypeDecorator, TypeEngine

T = TypeVar("T")


class Pinned(TypeDecorator[T]):
    """A column whose values always arrive as the type this code was written for.

    An unnamed statement is parsed anew on each call, but asyncpg decodes its rows by the
    description it cached at the first. After `ALTER … TYPE real` under a warm runtime order 5
    would read as order 1084227584, without an error. `CAST(column AS type)` in the query keeps the
    description true; what does not fit the type any more is an error, never a wrong value.
    """

    impl: TypeEngine[Any] | type[TypeEngine[Any]] = TypeEngine
    cache_ok = True

    def __init__(self, impl: TypeEngine[T]) -> None:
        super().__init__()
        if impl.__visit_name__ in ("CHAR", "NCHAR", "BIT", "ARRAY"):
            raise TypeError(f"{impl!r} without its bounds is another type: cast it in the query")
        self.impl = impl

    def column_expression(self, column: ColumnElement[T]) -> ColumnElement[T]:
        # Without the bounds: a cast to varchar(120) would cut what a widened column has come to
        # hold, one to numeric(10, 2) would round it.
        unbounded = self.impl_instance.copy()
        for bound in {"length", "precision", "scale"} & vars(unbounded).keys():
            setattr(unbounded, bound, None)
        return cast(column, unbounded)
