"""Time limits that share one timer of the event loop.

`asyncio.timeout_at` and asyncpg set a timer for each use and nearly always cancel it: 5 % of a warm
request's instructions. The shared timer stays until it is due and is then set for the next call, so
that most requests set none.
"""

import asyncio
from collections.abc import Callable
from contextvars import Context
from math import inf
from typing import Any, Self
from weakref import WeakKeyDictionary


class Call:
    """A call of `function` at `when` on the loop's clock (None: never), like the handle of
    `loop.call_at`."""

    def __init__(self, when: float | None, function: Callable[..., object], *args: Any) -> None:
        self.when, self.function, self.args, self.has_expired = when, function, args, False
        self._timer = _timers.get(loop := asyncio.get_running_loop()) or _Timer(loop)
        self._timer.add(self)

    def reschedule(self, when: float | None) -> None:
        """Change the time; None suspends the call."""
        self.when = when
        self._timer.add(self)

    def cancel(self) -> None:
        self._timer.calls.discard(self)


class TimeLimit(Call):
    """A limit of a block, like `asyncio.timeout_at`: the current task is cancelled at `when`, and
    the block then raises TimeoutError."""

    def __init__(self, when: float | None) -> None:
        task: Any = asyncio.current_task()  # never None: an ASGI app runs in a task
        self._task, self._cancelling = task, task.cancelling()
        super().__init__(when, task.cancel)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.cancel()
        is_ours = self.has_expired and self._task.uncancel() <= self._cancelling
        if is_ours and isinstance(error, asyncio.CancelledError):  # not also a shutdown's
            raise TimeoutError from error


class _Timer:
    """The timer of one event loop. It does not refer to the loop, which is its weak key."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.calls: set[Call] = set()
        self._due = inf
        _timers[loop] = self

    def add(self, call: Call) -> None:
        self.calls.add(call)
        if call.when is not None and call.when < self._due:
            self._due = call.when
            # In an empty context, because the timer outlives the invocation.
            asyncio.get_running_loop().call_at(call.when, self._wake, context=Context())

    def _wake(self) -> None:
        self._due, now = inf, asyncio.get_running_loop().time()
        due = [call for call in self.calls if call.when is not None and call.when <= now]
        self.calls.difference_update(due)
        for call in list(self.calls):
            self.add(call)
        for call in due:
            call.has_expired = True
            call.function(*call.args)


_timers: WeakKeyDictionary[asyncio.AbstractEventLoop, _Timer] = WeakKeyDictionary()
