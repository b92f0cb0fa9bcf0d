"""`make bench FAST=1`: the ratios and counts of this code against those of the committed report."""

from dataclasses import dataclass
from typing import Any

#: How far an interval may lie above the committed one. This is an assumption about the noise
#: between two runs of the same code on one machine.
NOISE = 0.05


@dataclass(frozen=True)
class Comparison:
    """One metric in the committed report and now, with the interval of its rounds."""

    metric: str
    committed: dict[str, Any]
    measured: dict[str, Any]

    @property
    def is_worse(self) -> bool:
        """Whether even the best round is above the worst committed one, by more than NOISE."""
        noise = 0 if self.committed["low"] == self.committed["high"] else NOISE
        return bool(self.measured["low"] > self.committed["high"] * (1 + noise))

    def __str__(self) -> str:
        verdict = "worse" if self.is_worse else "alike"
        return (
            f"{verdict}  {_interval(self.measured)}, was {_interval(self.committed)}  {self.metric}"
        )


def compare(committed: list[dict[str, Any]], measured: list[dict[str, Any]]) -> list[Comparison]:
    """Compare the targets that both have."""
    before = {row["metric"]: row for row in committed}
    return [
        Comparison(row["metric"], before[row["metric"]], row)
        for row in measured
        if row["metric"] in before
    ]


def _interval(row: dict[str, Any]) -> str:
    if row["low"] == row["high"]:
        return f"{row['measured']:g}"
    return f"{row['measured']:.3f} ({row['low']:.3f} to {row['high']:.3f})"
