"""What Lambda needs of a process.

Owns the thread and the event loop that serve every invocation. Knows no SQLAlchemy and no HTTP.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class LoopThread:
    """One thread that owns one event loop for the life of the process.

    A connection belongs to the loop that opened it. Mangum runs an invocation on the loop of the
    thread it is called in, so calling it always here keeps pooled connections valid from one
    invocation to the next; and since calls queue up, `dispose()` can never overlap one.
    The thread starts with the first call, not at import: a process may fork before that.
    """

    def __init__(self) -> None:
        self._executor = ThreadPoolExecutor(1, "event-loop", initializer=self._own_loop)

    @staticmethod
    def _own_loop() -> None:
        asyncio.set_event_loop(asyncio.new_event_loop())

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` on the thread and wait for what it returns or raises."""
        return self._executor.submit(function, *args, **kwargs).result()
