"""A process has one event loop, and one thread at a time runs it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from handler.warm.aws_lambda.event_loop import EventLoop
from handler.warm.aws_lambda.shutdown import SHUTDOWN_TIMEOUT
from tests.conftest import run


def current_loop_id() -> int:
    return id(asyncio.get_event_loop())


def test_every_call_uses_the_same_loop_from_any_thread() -> None:
    loop = EventLoop()
    with ThreadPoolExecutor(1) as thread, ThreadPoolExecutor(1) as other_thread:
        first, second, third = (
            pool.submit(loop.call, current_loop_id) for pool in (thread, thread, other_thread)
        )
        assert first.result() == second.result() == third.result()
        thread.submit(loop.close).result()


def test_an_exception_in_a_call_reaches_the_caller() -> None:
    def fail() -> None:
        raise LookupError("no such thing")

    loop = EventLoop()
    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(LookupError, match="no such thing"):
            thread.submit(loop.call, fail).result()
        thread.submit(loop.close).result()


def test_shutdown_cancels_an_invocation_and_waits_for_it() -> None:
    loop, started, steps = EventLoop(), threading.Event(), list[str]()

    async def query() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)  # the clean-up of a cancelled query
            steps.append("cancelled")

    async def dispose() -> None:
        steps.append("disposed")

    def invocation() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run(query)

    with ThreadPoolExecutor(1) as thread:
        invocation_done = thread.submit(invocation)
        started.wait()
        loop.shut_down(dispose, SHUTDOWN_TIMEOUT)
        invocation_done.result()
        thread.submit(loop.close).result()
    assert steps == ["cancelled", "disposed"]


FORK = """
import os
from handler.warm.aws_lambda.event_loop import EventLoop

loop = EventLoop()
child = os.fork()
if child == 0:
    os._exit(loop.call(lambda: 7))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_can_fork_before_the_first_call() -> None:
    assert run("-c", FORK) == (0, "7\n")
