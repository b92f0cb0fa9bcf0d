"""The event loop that all invocations of the process share."""

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)


class _ContextExecutor(ThreadPoolExecutor):
    """A thread pool that runs functions in the context of their caller, as `asyncio.to_thread`
    does."""

    def submit(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        return super().submit(partial(copy_context().run, function, *args, **kwargs))


class EventLoop:
    """The one event loop of the process, used by one thread at a time.

    A connection belongs to the loop that opened it, and Mangum uses the loop of the calling thread.
    Calling Mangum here keeps pooled connections valid between invocations. A lock keeps invocations
    and the shutdown thread's `dispose()` from overlapping. See docs/decisions/one-event-loop.md.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = threading.Lock()

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` with the loop set as the current thread's event loop.

        The loop is created only on the first call, because the process may fork before it.
        """
        with self._turn:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                self._loop.set_default_executor(_ContextExecutor())
            asyncio.set_event_loop(self._loop)
            return function(*args, **kwargs)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` on the loop until it completes."""
        self.call(lambda: asyncio.get_event_loop().run_until_complete(work()))

    def close(self) -> None:
        """Close the loop. The next call creates a new one."""
        self.call(lambda: asyncio.get_event_loop().close())
        self._loop = None

    def shut_down(self, cleanup: Callable[[], Awaitable[None]], timeout: float) -> None:
        """Cancel all tasks, then run `cleanup`, for at most `timeout` seconds. Thread-safe."""
        if self._loop is None:
            return  # nothing ever ran
        # A callback that lists the tasks would, on an idle loop, run only after `cleanup` has begun
        # and cancel it as well.
        for task in asyncio.all_tasks(self._loop):
            self._loop.call_soon_threadsafe(task.cancel)
        thread = threading.Thread(target=self.run, args=(cleanup,), name="closing", daemon=True)
        thread.start()
        thread.join(timeout)
        if thread.is_alive():
            log.warning("the database connections were not closed within %s s", timeout)
