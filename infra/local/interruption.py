"""Ctrl-C and SIGTERM, taken where they can do no harm.

Python raises KeyboardInterrupt between any two instructions. Between starting a process and noting
its number, inside a clean-up, or in asyncio's own set-up that would leave something behind.
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


def take_sigterm_as_ctrl_c() -> None:
    """For a process that ends in order on either, also as a background job, which ignores SIGINT.
    As the same signal, since asyncio knows what to do with that one."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal is the second
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, lambda *_: signal.raise_signal(signal.SIGINT))


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """What comes in the block takes effect after it. By handlers, not by a mask: a process started
    in the block would inherit the mask, and could then not be stopped."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {number: signal.signal(number, lambda n, _: came.append(n)) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])


def run_program(command: Sequence[str | Path], **options: Any) -> subprocess.CompletedProcess[str]:
    """`subprocess.run`, but an interruption ends whatever the program itself has started, too."""
    with held_back():
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


def run(function: Callable[P, Coroutine[Any, Any, T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """`asyncio.run`, interruptible only while `function` runs: by cancelling it."""

    async def main() -> T:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        try:
            return await function(*args, **kwargs)
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)

    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        return asyncio.run(main())
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
