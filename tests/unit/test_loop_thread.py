"""One thread owns one loop for the life of the process."""

import asyncio
import threading

import pytest

from handler.runtime import LoopThread
from tests.conftest import run


def where() -> tuple[int, int]:
    return threading.get_ident(), id(asyncio.get_event_loop())


def shut(loop_thread: LoopThread) -> None:
    loop_thread.call(lambda: asyncio.get_event_loop().close())
    loop_thread._executor.shutdown()


def test_every_call_runs_on_the_same_thread_and_loop() -> None:
    loop_thread = LoopThread()
    first, second = loop_thread.call(where), loop_thread.call(where)
    shut(loop_thread)
    assert first == second
    assert first[0] != threading.get_ident()


def test_what_a_call_raises_reaches_the_caller() -> None:
    loop_thread = LoopThread()

    def fail() -> None:
        raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing"):
        loop_thread.call(fail)
    shut(loop_thread)


FORK = """
import os
from handler.runtime import LoopThread

loop_thread = LoopThread()
child = os.fork()
if child == 0:
    os._exit(loop_thread.call(lambda: 7))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_may_fork_before_the_first_call() -> None:
    assert run("-c", FORK) == (0, "7\n")
