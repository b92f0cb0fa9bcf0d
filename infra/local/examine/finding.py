"""What was found of one property: a verdict, and what it was measured by."""

from dataclasses import dataclass, field
from enum import StrEnum


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "could not tell"


@dataclass(frozen=True)
class Finding:
    """`measured`: one line for a person. `numbers`: the same for a program. `reason`: why it could
    not be told."""

    verdict: Verdict
    measured: str = ""
    numbers: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    reason: str = ""


def unknown(reason: str) -> Finding:
    return Finding(Verdict.UNKNOWN, reason=reason)


def decided(kept: bool, measured: str, **numbers: float | int | str | bool | None) -> Finding:
    return Finding(Verdict.YES if kept else Verdict.NO, measured, numbers)


class UnknownError(Exception):
    """A measurement cannot be made. Its text says why."""
