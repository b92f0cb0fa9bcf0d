"""The measurement of a scenario, and the report: `reports/faults.json` (schema 2)."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

#: Environment variable: the duration of each fault in seconds.
DURATION_VARIABLE = "WARM_ENGINE_FAULT_SECONDS"
#: The test property that holds a measurement.
PROPERTY = "fault"
TABLE_HEAD = """\
| what is broken | success rate | max latency | time to recovery | leaked | lost | duplicated |
|---|---|---|---|---|---|---|
"""


@dataclass(frozen=True)
class Measurement:
    """The figures of one scenario.

    Lost and duplicated writes are counted in rows, after the client retried unanswered writes.
    """

    title: str
    #: Requests in progress at any time during the fault, and how many of them succeeded.
    requests: int
    succeeded: int
    #: Requests that began and ended during the fault, and how many of them succeeded.
    during_fault: int
    succeeded_during_fault: int
    #: How many of `requests` had this status.
    status_504: int
    #: The maximum over all responses of the run.
    max_latency_s: float
    #: From the end of the fault to the first success, and why that may exceed a second.
    time_to_recovery_s: float
    reason: str
    writes: int
    retried_by_client: int
    leaked_connections: int
    lost_writes: int
    duplicated_writes: int
    #: Requests of the whole run that took more than one attempt.
    retried_by_handler: int = 0

    @property
    def row(self) -> str:
        rate = f"{int(100 * self.succeeded / self.requests)} % of {self.requests}"
        times = f"{self.max_latency_s:.1f} s | {self.time_to_recovery_s:.1f} s"
        counts = f"{self.leaked_connections} | {self.lost_writes} | {self.duplicated_writes}"
        return f"| {self.title} | {rate} | {times} | {counts} |"


def table(scenarios: list[Measurement]) -> str:
    reasons = sorted(
        {
            f"- *{scenario.title}*: {scenario.reason}.\n"
            for scenario in scenarios
            if scenario.time_to_recovery_s > 1
        }
    )
    rows = TABLE_HEAD + "".join(f"{scenario.row}\n" for scenario in scenarios)
    if not reasons:
        return rows
    return f"{rows}\nRecovery took more than a second in these rows:\n\n{''.join(reasons)}"


def write(folder: Path, seconds: float, scenarios: list[Measurement]) -> None:
    content = {
        "schema": 2,
        "fault_duration_s": seconds,
        "scenarios": [asdict(scenario) for scenario in scenarios],
    }
    (folder / "faults.json").write_text(json.dumps(content, indent=1) + "\n")
    (folder / "faults.md").write_text(
        f"# Faults\n\nEach lasted {seconds:g} s, some less "
        "(`max_seconds` in `tests/faults/scenarios.py`). "
        f"Made by `make faults`.\n\n{table(scenarios)}"
    )


def read(text: str) -> list[Measurement]:
    return [Measurement(**scenario) for scenario in json.loads(text)["scenarios"]]
