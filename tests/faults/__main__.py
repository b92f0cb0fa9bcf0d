"""`python -m tests.faults [SECONDS]`: run every scenario and write the report.

Scenarios with packet loss, name resolution and full disks need a network namespace and are left out
where none can be created.
"""

import argparse
import os
import sys
from pathlib import Path

import pytest

from infra.local import network
from infra.local.service import find as find_service
from infra.local.signals import treat_sigterm_as_sigint
from tests.command import exit_with
from tests.faults import positive_seconds
from tests.faults.probe import probe
from tests.faults.report import DURATION_VARIABLE, PROPERTY, Measurement, table, write


class ResultCollector:
    """Pytest plugin that collects the measurements from all workers."""

    def __init__(self) -> None:
        self.scenarios: dict[str, Measurement] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == PROPERTY and report.when == "call" and isinstance(value, dict):
                self.scenarios[value["title"]] = Measurement(**value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("SECONDS", nargs="?", type=positive_seconds, default=10.0)
    seconds = parser.parse_args().SECONDS
    service = find_service(Path(os.environ["ROOT"]) if os.environ.get("ROOT") else None)
    if not network.is_isolated():
        if (reason := network.unavailable_reason()) is None:
            same_command = [sys.executable, "-m", "tests.faults", *sys.argv[1:]]
            isolated_command = network.isolated_command(same_command)
            os.execvp(isolated_command[0], isolated_command)  # noqa: S606  # runs the same command
        print(f"skipping packet loss, name resolution and full disks: {reason}")
    treat_sigterm_as_sigint()
    probe(service)
    os.environ[DURATION_VARIABLE] = str(seconds)
    collector = ResultCollector()
    # `probe` has imported anyio, whose pytest plugin is then imported without rewritten assertions.
    options = ["-q", "-n2", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    status = pytest.main(["tests/faults/test_faults.py", *options], plugins=[collector])
    from tests.faults.scenarios import ISOLATED_SCENARIOS, SCENARIOS  # after pytest's rewriting

    order = [scenario.title for scenario in (*SCENARIOS, *ISOLATED_SCENARIOS)]
    scenarios = [collector.scenarios[title] for title in order if title in collector.scenarios]
    if status == pytest.ExitCode.OK:
        folder = service.root / "reports"
        folder.mkdir(exist_ok=True)
        write(folder, seconds, scenarios)
    print(table(scenarios))
    return int(status)


if __name__ == "__main__":
    exit_with(main)
