"""`make bench`: warm, cold and scale in turn, with progress; six minutes at most."""

import os
import time

from tqdm import tqdm

from infra.local.signals import run_async, treat_sigterm_as_sigint
from infra.local.stack import Stack
from tests.benchmarks import cold, plot, report, scale, warm
from tests.benchmarks.plan import (
    HANDLERS,
    RTTS_MS,
    SCALES,
    SERVER_CONNECTIONS,
    STARTS,
    TURNS,
)
from tests.command import exit_with


def main() -> int:
    treat_sigterm_as_sigint()
    load, started = os.getloadavg()[0], time.monotonic()
    scale.allow_many_sockets()
    steps = len(RTTS_MS) * TURNS + 2 + STARTS * 2 * len(HANDLERS) + len(SCALES)
    sizes: dict[str, str | int] = {
        "default_pool_size": SERVER_CONNECTIONS,
        "reserve_pool_size": 0,
        "max_client_conn": max(clients for clients, _ in SCALES) + 100,
    }
    with (
        # disable=None: no bar without a terminal, where each redrawing would be a line of a log.
        tqdm(total=steps, bar_format="{bar:20} {n}/{total} {elapsed}  {desc}", disable=None) as bar,
        Stack(max_connections=SERVER_CONNECTIONS + 10) as stack,
        stack.another_pgbouncer(tls=False, settings=sizes) as bouncer,
    ):

        def report_progress(message: str) -> None:
            if bar.disable:
                print(message, flush=True)
            bar.set_description_str(message, refresh=False)
            bar.update()

        rows = {
            "warm": warm.measure(stack, bouncer, report_progress),
            "cold": run_async(cold.measure, stack, bouncer, report_progress),
            "scale": run_async(scale.measure, stack, bouncer, report_progress),
        }
        servers = {
            "postgres": stack.postgres.version,
            "pgbouncer": ".".join(map(str, bouncer.program.version)),
        }
    made = report.make(rows, servers, load)
    report.write(made)
    plot.draw()
    print("\n".join(report.summary(made)))
    for target in made["targets"]:
        kept = "reached" if target["measured"] <= target["target"] else "missed"
        print(f"{kept:8} {target['measured']:6} of {target['target']:5}  {target['metric']}")
    print(f"written  reports/bench.json, .md, .png after {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    exit_with(main)
