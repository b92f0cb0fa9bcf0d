"""The result of a row, and the record of its invocations."""

import contextlib
import json
import statistics
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.fleet import InvocationResult


@dataclass
class Result:
    """A row of the report, with the fields of `churn.json`, schema 2."""

    path: str
    ending: str
    invocations: int = 0
    succeeded: int = 0
    failed: int = 0
    in_flight_at_ending: int = 0
    failures_by_cause: dict[str, int] = field(default_factory=dict)
    peak_backends: int = 0
    peak_clients: int = 0
    held_backends: int = 0
    held_clients: int = 0
    #: None if the servers' logs cannot be read (Compose).
    unclean_closes: int | None = None
    release_s: float | None = None
    release_limit_s: float = 0
    cold_latency_ms: dict[str, float] = field(default_factory=dict)
    warm_latency_ms: dict[str, float] = field(default_factory=dict)
    samples: list[tuple[float, int, int]] = field(default_factory=list)
    #: In the warm phase.
    warm_invocations_per_s: float = 0

    @property
    def causes(self) -> str:
        return ", ".join(f"{count} × {cause}" for cause, count in self.failures_by_cause.items())


class InvocationLog:
    """Records the results of all invocations."""

    def __init__(self) -> None:
        self.answers: list[InvocationResult] = []
        #: Requests whose sandbox ended while they ran.
        self.interrupted: set[str] = set()

    def record(self, answer: InvocationResult) -> None:
        self.answers.append(answer)

    @staticmethod
    def has_succeeded(answer: InvocationResult) -> bool:
        return answer.error is None and answer.payload.get("statusCode") == 200

    def write(self, result: Result, logs: Path) -> None:
        causes = _causes(logs)
        counted = [each for each in self.answers if each.request_id not in self.interrupted]
        good = [answer for answer in counted if self.has_succeeded(answer)]
        bad = [answer for answer in counted if not self.has_succeeded(answer)]
        result.invocations, result.succeeded, result.failed = len(counted), len(good), len(bad)
        result.in_flight_at_ending = len(self.interrupted)
        result.failures_by_cause = dict(
            Counter(answer.error or causes.get(answer.request_id, "?") for answer in bad)
        )
        result.cold_latency_ms = _percentiles([answer.ms for answer in good if answer.cold])
        result.warm_latency_ms = _percentiles([answer.ms for answer in good if not answer.cold])


def _causes(logs: Path) -> dict[str, str]:
    """Return the SQLSTATE or cause of each failed request, from the handler's log."""
    causes = {}
    for log in logs.glob("*.log"):
        for text in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "coldStart" in line and "cause" in line:
                    causes[line["requestId"]] = line.get("sqlstate") or line["cause"]
    return causes


def _percentiles(ms: list[float]) -> dict[str, float]:
    if len(ms) < 2:
        return {"p50": round(ms[0], 1) if ms else 0.0, "p95": round(ms[0], 1) if ms else 0.0}
    cuts = statistics.quantiles(ms, n=20, method="inclusive")
    return {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}
