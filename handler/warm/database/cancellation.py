"""Cancellation: ends the database work of an invocation at its deadline or its end."""

from __future__ import annotations

import asyncio
from contextvars import ContextVar
from typing import Any, Self
from weakref import WeakKeyDictionary

from sqlalchemy import Engine, event

from handler.warm import request_policy
from handler.warm.database.connection import wait_for_closing
from handler.warm.errors import DatabaseError

_current: ContextVar[Invocation | None] = ContextVar("invocation", default=None)
#: The latest on each loop, for threads and tasks that did not inherit the context.
_latest: WeakKeyDictionary[asyncio.AbstractEventLoop, Invocation] = WeakKeyDictionary()


class Invocation:
    """The database work of one invocation: the connections it holds, and which task uses each.

    `async with Invocation(seconds)` runs the block as an invocation with `seconds` left (None:
    without a deadline) and closes it at the end. The invocation's tasks and threads inherit it with
    their context. Once it is closed, none of them gets a connection.
    """

    def __init__(self, seconds: float | None) -> None:
        #: On the clock of the event loop; None if there is no deadline.
        self.deadline = None if seconds is None else asyncio.get_running_loop().time() + seconds
        self._closed = False
        self._users: dict[Any, asyncio.Task[Any] | None] = {}

    async def __aenter__(self) -> Self:
        _latest[asyncio.get_running_loop()] = self
        self._token = _current.set(self)
        return self

    async def __aexit__(self, *_: object) -> None:
        _current.reset(self._token)
        await self.close()

    def raise_if_over(self) -> None:
        """Raise DatabaseError if the invocation is closed or its deadline has passed."""
        late = self.deadline is not None and asyncio.get_running_loop().time() >= self.deadline
        if self._closed or late:
            raise DatabaseError(request_policy.PAST_DEADLINE)

    async def close(self) -> None:
        """Cancel what still runs on the server, and refuse any further work.

        Each task is cancelled only once, so that asyncpg's cancel request is not cancelled. After
        CANCEL_TIMEOUT the remaining connections are disconnected.
        """
        was_closed, self._closed = self._closed, True
        if was_closed and not self._users:
            return  # an earlier call has waited
        until = asyncio.get_running_loop().time() + request_policy.CANCEL_TIMEOUT
        this_task = asyncio.current_task()
        tasks = {task for task in self._users.values() if task and task is not this_task}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=request_policy.CANCEL_TIMEOUT)
        for record in list(self._users):
            if record.driver_connection is not None:
                record.driver_connection.terminate()
        await wait_for_closing(until)


def current() -> Invocation | None:
    """Return the invocation of this context or, without one, of this event loop."""
    return _current.get() or _latest.get(asyncio.get_running_loop())


def raise_if_over() -> None:
    """Raise DatabaseError if the current invocation is over."""
    if invocation := current():
        invocation.raise_if_over()


def seconds_left() -> float | None:
    """Return the seconds until the deadline of this invocation, or None if there is none.

    Work in batches can stop between two batches instead of being cancelled within one.
    """
    deadline = invocation.deadline if (invocation := current()) else None
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


def track(engine: Engine) -> None:
    """Record which invocation holds which connection of `engine`."""
    event.listen(engine, "checkout", _note_user)
    event.listen(engine, "checkin", _forget_user)


def _note_user(_: Any, record: Any, __: Any) -> None:
    if holder := current():
        holder.raise_if_over()
        holder._users[record] = asyncio.current_task()
        record.info["invocation"] = holder


def _forget_user(_: Any, record: Any) -> None:
    if holder := record.info.pop("invocation", None):
        holder._users.pop(record, None)
