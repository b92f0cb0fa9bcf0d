"""One loop for the life of the process, and one thread at a time on it."""

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from handler.runtime import Loop
from tests.conftest import run


def here() -> int:
    return id(asyncio.get_event_loop())


def test_every_call_has_the_same_loop_from_whichever_thread() -> None:
    loop = Loop()
    with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(1) as other:
        first, second, third = (each.submit(loop.call, here) for each in (one, one, other))
        assert first.result() == second.result() == third.result()
        one.submit(loop.close).result()


def test_what_a_call_raises_reaches_the_caller() -> None:
    def fail() -> None:
        raise LookupError("no such thing")

    loop = Loop()
    with ThreadPoolExecutor(1) as thread:
        with pytest.raises(LookupError, match="no such thing"):
            thread.submit(loop.call, fail).result()
        thread.submit(loop.close).result()


def test_the_goodbye_cancels_an_invocation_and_waits_for_its_end() -> None:
    loop, begun, seen = Loop(), threading.Event(), list[str]()

    async def query() -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.02)  # what a cancelled query still has to do
            seen.append("cancelled")

    async def dispose() -> None:
        seen.append("disposed")

    def invocation() -> None:
        with pytest.raises(asyncio.CancelledError):
            loop.run(query)

    with ThreadPoolExecutor(1) as thread:
        serving = thread.submit(invocation)
        begun.wait()
        loop.finish(dispose)
        serving.result()
        thread.submit(loop.close).result()
    assert seen == ["cancelled", "disposed"]


FORK = """
import os
from handler.runtime import Loop

loop = Loop()
child = os.fork()
if child == 0:
    os._exit(loop.call(lambda: 7))
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_process_may_fork_before_the_first_call() -> None:
    assert run("-c", FORK) == (0, "7\n")
