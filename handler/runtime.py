"""What Lambda needs of a process.

Owns the event loop that serves every invocation, and the end of the process. Knows no SQLAlchemy
and no HTTP framework.
"""

import asyncio
import http.client
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")
log = logging.getLogger(__name__)

#: What a clean end may take, in seconds: less than the 0.3 that Lambda leaves a runtime where
#: external extensions run beside it.
GRACE = 0.25


class Loop:
    """The one event loop of the process, for one thread at a time.

    A connection belongs to the loop that opened it. Mangum runs an invocation on the loop of the
    thread it is called in, so calling it here keeps pooled connections valid from one invocation to
    the next. The main thread's invocations take turns with the `dispose()` of the thread that ends
    the process: they never overlap. A thread of the loop's own costs a tenth of a warm request.
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = threading.Lock()

    def call(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run `function` where the loop is the thread's. It is made at the first call: a process
        may fork before that."""
        with self._turn:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            return function(*args, **kwargs)

    def run(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run `work` on the loop to its end."""
        self.call(lambda: asyncio.get_event_loop().run_until_complete(work()))

    def close(self) -> None:
        """End the loop. The next call begins another."""
        self.call(lambda: asyncio.get_event_loop().close())
        self._loop = None

    def finish(self, last: Callable[[], Awaitable[None]]) -> None:
        """Cancel what runs, then run `last` on the loop; no longer than GRACE. From any thread."""
        if self._loop is None:
            return  # nothing was ever run
        # Listed now: a callback that cancels "everything" may find the loop idle, and fire only
        # when `last` starts, which it would then cancel.
        for task in asyncio.all_tasks(self._loop):
            self._loop.call_soon_threadsafe(task.cancel)
        leaving = threading.Thread(target=self.run, args=(last,), name="leaving", daemon=True)
        leaving.start()
        leaving.join(GRACE)
        if leaving.is_alive():
            log.warning("the database did not take leave within %s s", GRACE)


def around_snapshot(before: Callable[[], None], after: Callable[[], None]) -> None:
    """SnapStart: call `before` ahead of the snapshot and `after` in each copy restored from it."""
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        return
    from snapshot_restore_py import register_after_restore, register_before_snapshot  # the client's

    register_before_snapshot(before)
    register_after_restore(random.seed)  # each copy has the snapshot's: all would draw the same
    register_after_restore(after)


def call_at_shutdown(goodbye: Callable[[], None]) -> None:
    """Have Lambda announce the end with SIGTERM, then call `goodbye` and leave. From the main
    thread, in the init phase. Outside Lambda nothing happens.

    Without an extension there is no SIGTERM: the sandbox is killed as it is. An internal one, which
    is this process itself, is enough. A Python handler for SIGTERM would never run, since the main
    thread sits in the runtime client's C code waiting for the next event; the wake-up descriptor is
    written to all the same, and a thread reads it.
    """
    api = os.environ.get("AWS_LAMBDA_RUNTIME_API")
    if api is None:
        return
    _register_extension(api)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)

    def watch() -> None:
        while signal.SIGTERM not in os.read(reading, 64):
            pass
        try:
            goodbye()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)  # not sys.exit: it would wait for threads, and may hang

    threading.Thread(target=watch, name="shutdown", daemon=True).start()


def _register_extension(api: str) -> None:
    """Have Lambda tell us of the end. Of several processes only the first may have the name."""
    # No time-out: to be registered without knowing it, and so not to park, would be worse than to
    # wait. The runtime client waits for the same service, for good.
    connection = http.client.HTTPConnection(api)
    headers = {"Lambda-Extension-Name": "warm-engine", "Content-Type": "application/json"}
    try:
        connection.request("POST", "/2020-01-01/extension/register", '{"events": []}', headers)
        answer = connection.getresponse()
        answer.read()
    except OSError as error:
        log.warning("no extension, so no clean shutdown: %s", error)
        return
    finally:
        connection.close()
    if answer.status != http.client.OK:
        log.info("no extension, so no clean shutdown: Lambda answered %d", answer.status)
        return
    parked = {"Lambda-Extension-Identifier": answer.headers["Lambda-Extension-Identifier"]}

    def park() -> None:
        # Without it the init phase never ends. It never returns: no events were asked for.
        connection.request("GET", "/2020-01-01/extension/event/next", headers=parked)
        connection.getresponse()

    threading.Thread(target=park, name="extension", daemon=True).start()
