"""The benchmark compares like with like: each handler answers the same, and rightly, through one
server connection that all of them share."""

import contextlib

from infra.local.stack import Stack
from tests.benchmarks.plan import HANDLERS
from tests.benchmarks.warm import Worker


def test_every_handler_of_the_benchmark_reads_right_in_transaction_pooling(stack: Stack) -> None:
    sizes: dict[str, str | int] = {"default_pool_size": 1, "reserve_pool_size": 0}
    with (
        stack.another_pgbouncer(tls=False, settings=sizes) as bouncer,
        contextlib.ExitStack() as undo,
    ):
        workers = [Worker(name, stack.environment(bouncer)) for name in HANDLERS]
        for worker in workers:
            undo.callback(worker.end)
        for _ in range(5):
            for worker in workers:
                worker.serve(7)  # ends with a fault where an answer is not the order asked for
