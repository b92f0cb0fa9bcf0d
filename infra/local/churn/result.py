"""The result of a row, and the invocations it is computed from."""

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

    def add_invocations(
        self, invocations: list[InvocationResult], interrupted: set[str], logs: Path
    ) -> None:
        """Count the invocations, except those in `interrupted`, whose sandbox was ended under them.

        `logs` has the handler's logs, which contain the causes of failures.
        """
        causes = _causes(logs)
        counted = [result for result in invocations if result.request_id not in interrupted]
        succeeded = [result for result in counted if _has_succeeded(result)]
        failed = [result for result in counted if not _has_succeeded(result)]
        self.invocations, self.succeeded, self.failed = len(counted), len(succeeded), len(failed)
        self.in_flight_at_ending = len(interrupted)
        self.failures_by_cause = dict(
            Counter(result.error or causes.get(result.request_id, "?") for result in failed)
        )
        self.cold_latency_ms = _percentiles([result.ms for result in succeeded if result.cold])
        self.warm_latency_ms = _percentiles([result.ms for result in succeeded if not result.cold])


def _has_succeeded(result: InvocationResult) -> bool:
    return result.error is None and result.payload.get("statusCode") == 200


def _causes(logs: Path) -> dict[str, str]:
    """Return the SQLSTATE or cause of each failed request, by request id."""
    causes = {}
    for log in logs.glob("*.log"):
        for line in log.read_text(errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                entry = json.loads(line)
                if isinstance(entry, dict) and "coldStart" in entry and "cause" in entry:
                    causes[entry["requestId"]] = entry.get("sqlstate") or entry["cause"]
    return causes


def _percentiles(ms: list[float]) -> dict[str, float]:
    if len(ms) < 2:
        return dict.fromkeys(("p50", "p95"), round(ms[0], 1) if ms else 0.0)
    cuts = statistics.quantiles(ms, n=20, method="inclusive")
    return {"p50": round(cuts[9], 1), "p95": round(cuts[18], 1)}
