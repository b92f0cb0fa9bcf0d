"""`make churn`: every path and ending in turn, with progress, and a verdict at the end."""

import asyncio
import contextlib
import os
import sys
import time
from dataclasses import replace
from typing import Any

from tqdm import tqdm

from infra.local import compose, network
from infra.local.churn import plot, report
from infra.local.churn.plan import Path, Plan, Row, from_environment
from infra.local.churn.run import Result, Run
from infra.local.interruption import run as run_async


def churn() -> int:
    """Runs itself again in a network of its own where it can. 1 where a promise was broken."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]  # of a real stdout
    plan = from_environment()
    if compose.is_here():
        found = run_async(compose.Stack.find)
        plan = replace(plan, max_connections=found.postgres.max_connections)
    if not network.is_own():
        if (obstacle := network.obstacle()) is None:
            inside = network.command([sys.executable, "-m", "infra.local", "churn"])
            os.execvp(inside[0], inside)  # noqa: S606  # becomes the same command
        left_out = ", ".join(row for row in Row if row.needs_filter)
        print(f"left out   {left_out}: no packets can be dropped here ({obstacle})")
    begun = time.monotonic()
    results: list[Result] = []
    servers: dict[str, str] = {}
    try:
        run_async(_all, plan, results, servers)
    finally:
        if results:
            complete = len(results) == len(plan.rows) * len(Path)
            report.write(results, plan, servers, partial=not complete)
            plot.draw()
            print(
                f"\nwritten    {report.REPORTS.name}/churn.json, .md, .png"
                f"{'' if complete else ' (partial)'} after {time.monotonic() - begun:.0f} s"
            )
    faults = [fault for result in results for fault in report.broken(result, plan)]
    for fault in faults:
        print(f"broken     {fault}")
    if not faults:
        pooled = [result for result in results if result.path == Path.PGBOUNCER]
        direct = [result for result in results if result.path == Path.DIRECT]
        print(
            f"kept       through PgBouncer 0 of {sum(each.invocations for each in pooled)} failed,"
            f" on {max(each.peak_backends for each in pooled)} backends at most;"
            f" straight to Postgres {sum(each.failed for each in direct)} of"
            f" {sum(each.invocations for each in direct)}"
        )
    return 1 if faults else 0


async def _all(plan: Plan, results: list[Result], servers: dict[str, str]) -> None:
    """One row after the other. What a row's ended sandboxes hold is waited for while the next one
    runs, where its Postgres and PgBouncer are its own."""
    rows = [(path, row) for path in Path for row in plan.rows]
    print(
        f"churn      {len(rows)} rows of {plan.sandboxes} sandboxes on {plan.max_connections}"
        f" connections, replaced {plan.deploys}×;"
        f" about {len(rows) * plan.sandboxes * 1.05:.0f} s on two cores\n"
    )
    with tqdm(total=len(rows), bar_format="{bar:20} {n}/{total} rows {elapsed}  {desc}") as bar:
        async with asyncio.TaskGroup() as waiting:
            for path, row in rows:

                def say(what: str, label: str = f"{path}, {row}") -> None:
                    bar.set_description_str(f"{label}: {what}")

                async with contextlib.AsyncExitStack() as undo:
                    run = await undo.enter_async_context(Run(path, row, plan, say))
                    servers |= run.watch.versions
                    await run.churn()
                    finishing = waiting.create_task(_finish(run, undo.pop_all(), results, bar))
                    if compose.is_here():
                        say("what ended sandboxes hold")
                        await finishing
    order = {(path.value, row.value): number for number, (path, row) in enumerate(rows)}
    results.sort(key=lambda result: order[result.path, result.ending])


async def _finish(
    run: Run, undo: contextlib.AsyncExitStack, results: list[Result], bar: "tqdm[Any]"
) -> None:
    async with undo:
        await run.release()
        results.append(run.result)
    result = run.result
    tqdm.write(
        f"{result.path:10} {result.ending:9} {result.ok:5} ok {result.failed:5} failed"
        f" {result.peak_backends:3} backends  {result.causes}"
    )
    bar.update()
