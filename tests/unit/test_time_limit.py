"""Time limits on one shared timer: like asyncio's, with fewer timers."""

import asyncio
import gc
import time
import weakref
from typing import Any

import pytest

from handler.warm.time_limit import Call, TimeLimit


def now() -> float:
    return asyncio.get_running_loop().time()


def timers() -> list[Any]:
    loop: Any = asyncio.get_running_loop()
    return [handle for handle in loop._scheduled if not handle.cancelled()]


async def test_a_block_that_takes_too_long_raises_timeout_error() -> None:
    began = now()
    with pytest.raises(TimeoutError), TimeLimit(began + 0.05) as limit:
        await asyncio.sleep(60)
    assert limit.has_expired
    assert 0.05 <= now() - began < 30
    task = asyncio.current_task()
    assert task
    assert task.cancelling() == 0


async def test_a_block_that_ends_in_time_is_not_cancelled_later() -> None:
    with TimeLimit(now() + 0.02) as limit:
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert not limit.has_expired


async def test_a_limit_in_the_past_expires_at_the_first_wait() -> None:
    with pytest.raises(TimeoutError), TimeLimit(now() - 1):
        await asyncio.sleep(60)


async def test_a_block_without_a_limit_sets_no_timer() -> None:
    with TimeLimit(None):
        assert timers() == []


async def test_a_suspended_limit_does_not_expire_until_it_is_set_again() -> None:
    async def work() -> None:
        with TimeLimit(now() + 0.02) as limit:
            limit.reschedule(None)
            await asyncio.sleep(0.1)
            assert not limit.has_expired
            limit.reschedule(now() + 0.02)
            await asyncio.sleep(60)

    with pytest.raises(TimeoutError):
        await work()


@pytest.mark.parametrize("inner_is_first", [True, False])
async def test_of_nested_limits_only_the_earlier_expires(inner_is_first: bool) -> None:
    early, late = now() + 0.05, now() + 60
    outer = TimeLimit(late if inner_is_first else early)
    inner = TimeLimit(early if inner_is_first else late)
    with pytest.raises(TimeoutError), outer, inner:
        await asyncio.sleep(60)
    assert (inner.has_expired, outer.has_expired) == (inner_is_first, not inner_is_first)


async def test_code_that_blocks_past_both_limits_is_ended_by_the_outer_one() -> None:
    errors: list[str] = []

    async def work() -> None:
        with TimeLimit(now() + 0.02):
            try:
                with TimeLimit(now() + 0.01):
                    time.sleep(0.1)  # noqa: ASYNC251  # as a synchronous library may
                    await asyncio.sleep(60)
            except BaseException as error:
                errors.append(type(error).__name__)
                raise

    with pytest.raises(TimeoutError):
        await work()
    assert errors == ["CancelledError"]


async def test_a_shutdown_that_cancels_too_takes_precedence() -> None:
    async def work() -> None:
        with TimeLimit(now() + 0.02):
            try:
                await asyncio.sleep(60)
            finally:
                task.cancel()

    task = asyncio.create_task(work())
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_another_error_of_an_expired_block_is_not_replaced() -> None:
    async def work() -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), TimeLimit(now() + 0.02):
        await work()


async def test_many_blocks_share_one_timer() -> None:
    for _ in range(100):
        with TimeLimit(now() + 60), TimeLimit(now() + 61):
            await asyncio.sleep(0)
            Call(now() + 60, print).cancel()
    assert len(timers()) == 1


async def test_the_shared_timer_is_set_for_the_next_limit() -> None:
    with TimeLimit(now() + 0.02):
        pass
    with pytest.raises(TimeoutError), TimeLimit(now() + 0.1):
        await asyncio.sleep(60)


async def test_a_call_is_made_once_after_its_delay() -> None:
    calls: list[float] = []
    began = now()
    Call(began + 0.05, lambda: calls.append(now()))
    await asyncio.sleep(0.2)
    assert len(calls) == 1
    assert calls[0] - began >= 0.05


async def test_a_cancelled_call_is_not_made() -> None:
    calls: list[int] = []
    call = Call(now() + 0.02, calls.append, 1)
    call.cancel()
    call.cancel()
    await asyncio.sleep(0.1)
    assert calls == []


def test_a_closed_loop_is_freed() -> None:
    async def work() -> None:
        with TimeLimit(now() + 60):
            await asyncio.sleep(0)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(work())
    loop.close()
    reference = weakref.ref(loop)
    del loop
    gc.collect()
    assert reference() is None
