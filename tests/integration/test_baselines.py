"""Every handler of the benchmark reads correctly over one shared server connection."""

import contextlib

from infra.local.stack import Stack
from tests.benchmarks.plan import HANDLERS
from tests.benchmarks.warm import Worker


def test_every_benchmark_handler_reads_correctly_in_transaction_pooling(stack: Stack) -> None:
    one_connection: dict[str, str | int] = {"default_pool_size": 1, "reserve_pool_size": 0}
    with (
        stack.another_pgbouncer(tls=False, settings=one_connection) as bouncer,
        contextlib.ExitStack() as undo,
    ):
        workers = [Worker(name, stack.environment(bouncer)) for name in HANDLERS]
        for worker in workers:
            undo.callback(worker.stop)
        for _ in range(5):
            for worker in workers:
                worker.serve(7)  # fails unless each response is the requested order
