"""Defers Ctrl-C and SIGTERM where they would do harm.

Python raises KeyboardInterrupt between any two instructions. After a process was started but not
yet recorded, during a clean-up, or in asyncio's own set-up, this would leave something behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def treat_sigterm_as_sigint() -> None:
    """Handle SIGTERM and SIGHUP like SIGINT, which asyncio supports.

    This includes background jobs of a shell, which ignore SIGINT by default.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores SIGHUP
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


@contextlib.contextmanager
def deferred_signals() -> Iterator[None]:
    """Deliver signals after the block.

    This uses handlers instead of a signal mask, which child processes would inherit.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: received.append(n)) for number in SIGNALS
    }
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if received:
            signal.raise_signal(received[0])


def run_program(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """Like `subprocess.run`, but an interruption also kills the program's child processes."""
    with deferred_signals():
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )
    try:
        output, errors = process.communicate()
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    return subprocess.CompletedProcess(command, process.returncode, output, errors)


def run_async(
    function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs
) -> T:
    """Like `asyncio.run`, but signals only cancel `function`, not the cleanup of the loop."""

    async def main() -> T:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            return await function(*args, **kwargs)
        except asyncio.CancelledError:
            # asyncpg does not retrieve the error of a TLS request cancelled while it connects.
            asyncio.get_running_loop().set_exception_handler(lambda *_: None)
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return asyncio.run(main())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
