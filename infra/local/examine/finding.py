"""The result of measuring one property: a verdict and the evidence for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

Value = float | int | str | bool | None


class Verdict(StrEnum):
    YES = "yes"
    NO = "no"
    UNKNOWN = "could not tell"


@dataclass(frozen=True)
class Finding:
    """The result for a property. `measured`: the measurement as one line of text. `numbers`: the
    same for programs. `reason`: why the verdict is UNKNOWN."""

    verdict: Verdict
    measured: str = ""
    numbers: Mapping[str, Value] = field(default_factory=dict)
    reason: str = ""


def unknown(reason: str) -> Finding:
    return Finding(Verdict.UNKNOWN, reason=reason)


def conclude(has_property: bool, measured: str, **numbers: Value) -> Finding:
    return Finding(Verdict.YES if has_property else Verdict.NO, measured, numbers)


class UnknownError(Exception):
    """Raised if a property cannot be measured. The message is the finding's reason."""
