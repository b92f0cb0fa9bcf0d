"""`python -m tests.faults.soak [SEED [MINUTES]]`: inject random faults one after another.

Exits with status 1 and names the broken promise if a write is lost or duplicated, a connection
leaks or recovery takes too long. Success rates are not checked, because all scenarios share one
fleet, with their settings combined. Full disks, a second PgBouncer and scenarios with specially
configured sandboxes are omitted.
"""

import argparse
import os
import random
import secrets
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path

from infra.local import network
from infra.local.signals import run_async, treat_sigterm_as_sigint
from infra.local.stack import Stack
from tests.command import exit_with
from tests.faults import positive_seconds
from tests.faults.injectors import SystemUnderTest
from tests.faults.measurement import (
    assert_expectations,
    count_leaked_connections,
    prepared_system,
    run_scenario,
    running_traffic,
)
from tests.faults.scenarios import ISOLATED_SCENARIOS, SCENARIOS, Scenario
from tests.faults.traffic import Traffic

#: The minimum and maximum duration of a fault in seconds.
FAULT_SECONDS = (0.5, 4.0)


async def soak(
    seed: str, minutes: float, scenarios: list[Scenario], stack: Stack, folder: Path
) -> None:
    """Inject random faults for some minutes. Raises AssertionError if a promise is broken."""
    chooser, started = random.Random(seed), time.monotonic()
    faults = 0
    # One fleet serves all scenarios, so they share the longest timeout.
    deadline = max(scenario.deadline for scenario in scenarios)
    with prepared_system(scenarios, stack, folder) as system:
        async with running_traffic(system, folder, deadline) as traffic:
            while time.monotonic() < started + minutes * 60:
                if not faults % len(scenarios):
                    remaining = chooser.sample(scenarios, len(scenarios))
                scenario = remaining.pop()
                print(
                    f"{(time.monotonic() - started) / 60:5.1f}  {scenario.title:80}",
                    end="",
                    flush=True,
                )
                await run_and_check(
                    replace(scenario, deadline=deadline),
                    system,
                    traffic,
                    chooser.uniform(*FAULT_SECONDS),
                )
                faults += 1
        leaked = await count_leaked_connections(system)
    assert not leaked, f"{leaked} connections were left at the end"
    print(
        f"{faults} faults, {len(traffic.writes)} writes:"
        " none lost or duplicated, no connection leaked"
    )


async def run_and_check(
    scenario: Scenario, system: SystemUnderTest, traffic: Traffic, seconds: float
) -> None:
    """Run a scenario. Raises AssertionError with its title, the promise and stopped servers."""
    try:
        measurement = await run_scenario(scenario, system, traffic, seconds)
        rate = 100 * measurement.succeeded // measurement.requests
        print(
            f"{rate:3} % of {measurement.requests:<4} max latency {measurement.max_latency_s:.1f} s"
        )
        assert_expectations(scenario, measurement, check_rates=False)
    except (AssertionError, TimeoutError, OSError) as error:
        stopped = "".join(
            f"; {server.name} stopped: {server.first_error()}"
            for server in (system.bouncer, system.stack.postgres)
            if not server.alive
        )
        last_frame = traceback.extract_tb(error.__traceback__)[-1]
        raise AssertionError(f"{scenario.title}: {error or last_frame.line}{stopped}") from error


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description=__doc__)
    parser.add_argument("SEED", nargs="?", default="", help="random if empty")
    parser.add_argument("MINUTES", nargs="?", type=positive_seconds, default=10.0)
    arguments = parser.parse_args()
    seed, minutes = arguments.SEED or secrets.token_hex(4), arguments.MINUTES
    scenarios = [scenario for scenario in (*SCENARIOS, *ISOLATED_SCENARIOS) if scenario.combinable]
    if not network.is_isolated():
        if (reason := network.unavailable_reason()) is None:
            same_command = [sys.executable, "-m", "tests.faults.soak", seed, str(minutes)]
            isolated_command = network.isolated_command(same_command)
            os.execvp(isolated_command[0], isolated_command)  # noqa: S606  # runs the same command
        print(f"skipping packet loss and name resolution: {reason}")
        scenarios = [scenario for scenario in SCENARIOS if scenario.combinable]
    treat_sigterm_as_sigint()
    print(f"seed {seed}, {minutes:g} minutes, {len(scenarios)} kinds of fault", flush=True)
    try:
        with Stack() as stack, tempfile.TemporaryDirectory(prefix="soak-") as folder:
            run_async(soak, seed, minutes, scenarios, stack, Path(folder))
    except AssertionError as error:
        print(f"\nfailed: {error}\nreproduce with: make soak SEED={seed} MINUTES={minutes:g}")
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted")
        return 130
    return 0


if __name__ == "__main__":
    exit_with(main)
