"""`make churn`: runs all rows with progress, writes the reports and returns the exit status."""

import asyncio
import contextlib
import sys
import time
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from infra.local import compose, network
from infra.local.churn import plot, report
from infra.local.churn.plan import ConnectionPath, EndingScenario, Plan, from_environment
from infra.local.churn.result import Result
from infra.local.churn.run import Run
from infra.local.service import SAMPLE, Service
from infra.local.signals import run_async


def churn(service: Service = SAMPLE) -> int:
    """Run all rows, in a network namespace if possible; return 1 if a promise was broken."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # stdout is a TextIOWrapper
    plan = from_environment()
    if compose.is_inside_compose():
        plan = replace(plan, max_connections=run_async(compose.Stack.find).postgres.max_connections)
    if reason := network.enter_namespace("infra.local", "churn", "--root", str(service.root)):
        skipped = ", ".join(ending for ending in EndingScenario if ending.needs_filter)
        print(f"skipped    {skipped}: packets cannot be dropped here ({reason})")
    started = time.monotonic()
    results: list[Result] = []
    servers: dict[str, str] = {}
    try:
        run_async(_run_all_rows, service, plan, results, servers)
    finally:
        if results:
            complete = len(results) == len(plan.endings) * len(ConnectionPath)
            folder = service.root / report.REPORTS.name
            report.write(results, plan, servers, partial=not complete, folder=folder)
            plot.draw(folder)
            print(
                f"\nwritten    {report.REPORTS.name}/churn.json, .md, .png"
                f"{'' if complete else ' (partial)'} after {time.monotonic() - started:.0f} s"
            )
    failures = [failure for result in results for failure in report.broken_promises(result, plan)]
    for failure in failures:
        print(f"broken     {failure}")
    if not failures:
        pooled = [result for result in results if result.path == ConnectionPath.PGBOUNCER]
        direct = [result for result in results if result.path == ConnectionPath.DIRECT]
        print(
            f"kept       through PgBouncer 0 of {sum(row.invocations for row in pooled)} failed,"
            f" on {max(row.peak_backends for row in pooled)} backends at most;"
            f" directly to Postgres {sum(row.failed for row in direct)} of"
            f" {sum(row.invocations for row in direct)}"
        )
    return 1 if failures else 0


async def _run_all_rows(
    service: Service, plan: Plan, results: list[Result], servers: dict[str, str]
) -> None:
    """Add a result for each row to `results`, and the servers' versions to `servers`.

    Outside of Compose each row has its own servers, so the next row can start while connections of
    the previous one are still closing.
    """
    rows = [(path, ending) for path in ConnectionPath for ending in plan.endings]
    print(
        f"churn      {len(rows)} rows of {plan.sandboxes} sandboxes on {plan.max_connections}"
        f" connections, replaced {plan.deploys}×;"
        f" about {len(rows) * plan.sandboxes * 1.05:.0f} s on two cores\n"
    )
    layout = "{bar:20} {n}/{total} rows {elapsed}  {desc}"
    # disable=None: no progress bar without a terminal.
    with tqdm(total=len(rows), bar_format=layout, disable=None) as bar:
        async with asyncio.TaskGroup() as releases:
            for path, ending in rows:

                def report_progress(message: str, label: str = f"{path}, {ending}") -> None:
                    bar.set_description_str(f"{label}: {message}")

                async with contextlib.AsyncExitStack() as cleanup:
                    run = await cleanup.enter_async_context(
                        Run(path, ending, plan, report_progress, service)
                    )
                    servers |= run.monitor.versions
                    await run.churn()
                    release = releases.create_task(_release(run, cleanup.pop_all(), results, bar))
                    if compose.is_inside_compose():
                        report_progress("waiting for connections of ended sandboxes")
                        await release
    order = [(path.value, ending.value) for path, ending in rows]
    results.sort(key=lambda result: order.index((result.path, result.ending)))


async def _release(
    run: Run, cleanup: contextlib.AsyncExitStack, results: list[Result], bar: "tqdm[Any]"
) -> None:
    """Wait for the row's connections to close, add its result, and clean up."""
    async with cleanup:
        await run.release()
        results.append(run.result)
    result = run.result
    tqdm.write(
        f"{result.path:10} {result.ending:12} {result.succeeded:5} ok {result.failed:5} failed"
        f" {result.peak_backends:3} backends  {result.causes}"
    )
    bar.update()
