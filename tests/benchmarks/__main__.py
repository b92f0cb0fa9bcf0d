"""`make bench`: warm, cold and scale in turn, with progress; eight minutes at most."""

import os
import sys
import time

from tqdm import tqdm

from infra.local import LabError
from infra.local.signals import run_async, treat_sigterm_as_sigint
from infra.local.stack import Stack
from tests.benchmarks import cold, plot, report, scale, warm
from tests.benchmarks.plan import SERVER_CONNECTIONS, STANDARD, Plan


def main() -> int:
    treat_sigterm_as_sigint()
    load, started, plan = os.getloadavg()[0], time.monotonic(), STANDARD
    most_clients = max(clients for clients, _ in plan.scales)
    scale.allow_many_sockets(most_clients)
    sizes: dict[str, str | int] = {
        "default_pool_size": SERVER_CONNECTIONS,
        "reserve_pool_size": 0,
        "max_client_conn": most_clients + 100,
    }
    with (
        # disable=None: no bar without a terminal, where each redrawing would be a line of a log.
        tqdm(
            total=_steps(plan), bar_format="{bar:20} {n}/{total} {elapsed}  {desc}", disable=None
        ) as bar,
        Stack(max_connections=SERVER_CONNECTIONS + 10) as stack,
        stack.another_pgbouncer(tls=False, settings=sizes) as bouncer,
    ):

        def report_progress(message: str) -> None:
            if bar.disable:
                print(message, flush=True)
            bar.set_description_str(message, refresh=False)
            bar.update()

        rows = {
            "warm": warm.measure(stack, bouncer, plan, report_progress),
            "cold": run_async(cold.measure, stack, bouncer, plan, report_progress),
            "scale": run_async(scale.measure, stack, bouncer, plan, report_progress),
        }
        servers = {
            "postgres": stack.postgres.version,
            "pgbouncer": ".".join(map(str, bouncer.program.version)),
        }
    made = report.make(rows, servers, load)
    report.write(made)
    plot.draw()
    for table in (report.summary(made), report.stages(made), report.target_table(made)):
        print("\n".join(table), end="\n\n")
    print(f"written  reports/bench.json, .md, .png after {time.monotonic() - started:.0f} s")
    return 0


def _steps(plan: Plan) -> int:
    return plan.rounds * len(plan.turns) + len(plan.compiled) + plan.starts + len(plan.scales)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"warm-engine: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
