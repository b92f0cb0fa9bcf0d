"""`python -m tests.benchmarks.worker HANDLER`: a warm handler in a process of its own.

For each line on stdin, a number of requests, it serves so many and writes one JSON line: the
duration of each and the CPU time of one, in ms. It imports little, so that any Python with the
handler's packages can run it. For the line `imported` it writes how many modules it has imported,
and the size of their files in bytes.
"""

import copy
import importlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

EVENT = Path(__file__).parents[2] / "infra/local/event.json"


class Context:
    aws_request_id = "00000000-0000-0000-0000-000000000000"

    def get_remaining_time_in_millis(self) -> int:
        return 900_000  # Lambda's most: callgrind is slow


def events() -> list[dict[str, Any]]:
    """`GET /orders/1` to `/orders/1000`."""
    event = json.loads(EVENT.read_text())
    made = []
    for order_id in range(1, 1001):
        event["rawPath"] = event["requestContext"]["http"]["path"] = f"/orders/{order_id}"
        made.append(copy.deepcopy(event))
    return made


def imported() -> dict[str, int]:
    files = {getattr(module, "__file__", None) for module in list(sys.modules.values())}
    sizes = [Path(file).stat().st_size for file in files if file]
    return {"modules": len(sizes), "bytes": sum(sizes)}


def main() -> None:
    reports = os.fdopen(os.dup(1), "w", buffering=1)
    sys.stdout = Path(os.devnull).open("w")  # noqa: SIM115  # writing the log line is part of the cost
    module, _, name = sys.argv[1].rpartition(".")
    handler: Any = getattr(importlib.import_module(module), name)
    requests, served, context = events(), 0, Context()
    for line in sys.stdin:
        if line == "imported\n":
            print(json.dumps(imported()), file=reports)
            continue
        durations_ms = []
        cpu = time.process_time()
        for _ in range(int(line)):
            number = served * 7 % len(requests)
            started = time.perf_counter()
            response = handler(requests[number], context)
            durations_ms.append((time.perf_counter() - started) * 1000)
            if response["statusCode"] != 200 or json.loads(response["body"])["id"] != number + 1:
                raise SystemExit(f"{sys.argv[1]} returned {response} for order {number + 1}")
            served += 1
        cpu_ms = (time.process_time() - cpu) * 1000 / len(durations_ms)
        print(json.dumps({"ms": durations_ms, "cpu_ms": cpu_ms}), file=reports)


if __name__ == "__main__":
    main()
