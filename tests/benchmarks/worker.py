"""`python -m tests.benchmarks.worker MODULE`: a warm handler in a process of its own.

For each line on stdin, a number of requests, it serves so many and answers with one JSON line: what
each took, the CPU of all, and the memory after them.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from infra.local.fleet.http_front_end import api_gateway_event


class Context:
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        return 10_000


def main() -> None:
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # its log line is part of what it costs
    handler: Any = importlib.import_module(sys.argv[1]).handler
    events = [api_gateway_event("GET", f"/orders/{order_id}") for order_id in range(1, 1001)]
    served, process, context = 0, psutil.Process(), Context()
    for line in sys.stdin:
        took = []
        cpu = time.process_time()
        for _ in range(int(line)):
            number = served * 7 % len(events)
            started = time.perf_counter()
            answer = handler(events[number], context)
            took.append((time.perf_counter() - started) * 1000)
            if answer["statusCode"] != 200 or json.loads(answer["body"])["id"] != number + 1:
                raise SystemExit(f"{sys.argv[1]} answered {answer} for order {number + 1}")
            served += 1
        cpu = time.process_time() - cpu
        report = {"ms": took, "cpu_ms": cpu * 1000 / len(took), "rss": process.memory_info().rss}
        print(json.dumps(report), file=answers)


if __name__ == "__main__":
    main()
