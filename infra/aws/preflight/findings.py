"""What the checks share: the requested parameters, and what the checks have found so far."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from infra.aws import parameters
from infra.aws.account import Account
from infra.aws.parameters import Problem


@dataclass
class Findings:
    """The state of a preflight; checks add to it."""

    stack: str
    #: Parameters from the command line.
    chosen: dict[str, str]
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    #: Parameters of the existing stack.
    stored: dict[str, str] = field(default_factory=dict)
    #: Parameters that a check has decided and, after the checks of the account, all of them.
    values: dict[str, str] = field(default_factory=dict)
    #: Lambda's quota, or None if it could not be read.
    account_concurrency: int | None = None

    @property
    def parameters(self) -> dict[str, str]:
        """All parameters as requested."""
        return parameters.effective(self.chosen, self.stored)

    def well_formed(self, account: Account, *names: str) -> list[str]:
        """Return the values of the parameters `names` that are not empty and have a valid format.

        The others are reported by `parameters.problems`, and AWS would reject them.
        """
        requested = self.parameters
        return [
            requested[name]
            for name in names
            if requested[name] and parameters.has_shape(name, requested[name], account.region)
        ]


Check = Callable[[Findings, Account], Iterator[Problem]]
