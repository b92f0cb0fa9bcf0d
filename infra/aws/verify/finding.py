"""A check of one claim and its result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from botocore.exceptions import BotoCoreError, ClientError

from infra.aws.account import one_line
from infra.aws.verify.deployment import Deployment

Answer = Literal["yes", "no", "could not tell"]


@dataclass(frozen=True)
class Finding:
    """The result of a check. `seen` holds the evidence, or why the check could not tell."""

    answer: Answer
    seen: str


@dataclass(frozen=True)
class Check:
    """A check: its name in the documentation, its claim and the function that tests the claim."""

    name: str
    claim: str
    examine: Callable[[Deployment], Finding]

    def run(self, deployment: Deployment) -> Finding:
        """Run the check. An error of AWS leaves it undetermined, so that the other checks run."""
        try:
            return self.examine(deployment)
        except (BotoCoreError, ClientError) as error:
            return unknown(one_line(error))


def decide(holds: bool, seen: str) -> Finding:
    """Return yes or no, with the evidence."""
    return Finding("yes" if holds else "no", seen)


def unknown(reason: str) -> Finding:
    """Return that the check could not tell, and why."""
    return Finding("could not tell", reason)
