"""Describes the deployment to verify: its stack, resources and settings."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any

from infra.aws import stacks
from infra.aws.account import Account, OperatorError

if TYPE_CHECKING:
    from infra.aws.verify.observed import Line

#: Statuses of a stack whose resources all exist.
_COMPLETE = {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE"}


@dataclass(frozen=True)
class Deployment:
    """A stack with its resources by path, such as `Pooler/Cluster`."""

    account: Account
    stack: stacks.Stack
    resources: dict[str, stacks.Resource]
    started: datetime
    #: Log lines of warm reads, shared by several checks.
    reads: list[Line] = field(default_factory=list)

    @classmethod
    def find(cls, account: Account, name: str) -> Deployment:
        """Find a deployment. Raises OperatorError if the stack is missing or incomplete."""
        stack = stacks.get(account.session, name)
        if stack.status not in _COMPLETE:
            raise OperatorError(f"the stack {name} is {stack.status}: there is nothing to verify")
        resources = {
            resource.path: resource for resource in stacks.resources(account.session, name)
        }
        if "Function/Function" not in resources or "Url" not in stack.outputs:
            raise OperatorError(
                f"the stack {name} has no function: `make deploy` did not create it"
            )
        return cls(account, stack, resources, datetime.now(UTC))

    def client(self, service: str) -> Any:
        return self._clients.setdefault(
            service,
            self.account.session.client(service),  # type: ignore[call-overload]  # any service
        )

    @cached_property
    def _clients(self) -> dict[str, Any]:
        return {}

    def named(self, place: str) -> str:
        """Return the name of the resource at `place`, or an empty string."""
        return self.resources[place].identifier if place in self.resources else ""

    def of_type(self, kind: str) -> list[stacks.Resource]:
        return [resource for resource in self.resources.values() if resource.kind == kind]

    @property
    def url(self) -> str:
        return self.stack.outputs["Url"].rstrip("/")

    @property
    def authorization(self) -> str:
        return self.stack.parameters.get("Authorization", "NONE")

    @property
    def uses_proxy(self) -> bool:
        return self.stack.parameters.get("Connection") == "rds-proxy"

    @property
    def database(self) -> str:
        identifier = self.stack.parameters.get("DatabaseIdentifier", "")
        return identifier or self.named("Database/Instance")

    @property
    def token(self) -> str:
        """The JWT for authenticated requests, from the environment."""
        return os.environ.get("TOKEN", "")
