"""Reads CloudFormation stacks: status, parameters, outputs, resources."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import TYPE_CHECKING

import boto3
from botocore.exceptions import ClientError

from infra.aws.account import OperatorError, error_code

if TYPE_CHECKING:
    from types_boto3_cloudformation import CloudFormationClient

#: SAM's own stack, with the bucket of `--resolve-s3`.
SAM_STACK = "aws-sam-cli-managed-default"


@dataclass(frozen=True)
class Stack:
    """One stack."""

    name: str
    status: str
    parameters: dict[str, str]
    outputs: dict[str, str]
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_deployment(self) -> bool:
        """Whether `make deploy` created it: other applications have no such parameter."""
        return "Release" in self.parameters

    @property
    def is_registry(self) -> bool:
        """Whether it was created from registry.yaml."""
        return registry_of(self.parameters.get("Prefix", "")) == self.name.lower()


@dataclass(frozen=True)
class Resource:
    """A resource of a stack or a nested stack; `place` is its path, such as `Pooler/Service`."""

    place: str
    kind: str
    identifier: str


@cache
def client(session: boto3.Session) -> CloudFormationClient:
    return session.client("cloudformation")


def chosen_name() -> str:
    return os.environ.get("STACK") or "warm-engine"


def registry_of(stack: str) -> str:
    """Return the name of the stack with the image repositories of `stack`."""
    return f"{stack}-registry"


def prefix_of(stack: str) -> str:
    """Return the prefix of resource names: of repositories, a hosted zone, an RDS Proxy."""
    return stack.lower()


def find(session: boto3.Session, name: str, *, empty: bool = False) -> Stack | None:
    """Return the stack with that name, with `empty` also one without any resources."""
    try:
        found = client(session).describe_stacks(StackName=name)["Stacks"][0]
    except ClientError as error:
        if error_code(error) == "ValidationError":  # "Stack with id … does not exist"
            return None
        raise
    status = found["StackStatus"]
    if status == "DELETE_COMPLETE" or (status == "REVIEW_IN_PROGRESS" and not empty):
        return None
    return Stack(
        name,
        status,
        {each["ParameterKey"]: each["ParameterValue"] for each in found.get("Parameters", [])},
        {each["OutputKey"]: each["OutputValue"] for each in found.get("Outputs", [])},
        found.get("LastUpdatedTime", found["CreationTime"]),
    )


def get(session: boto3.Session, name: str) -> Stack:
    """Return the stack with that name. Raises OperatorError if there is none."""
    if (found := find(session, name)) is None:
        where = session.region_name
        raise OperatorError(f"there is no stack {name} in {where}. Set STACK=… or AWS_REGION=…")
    return found


def resources(session: boto3.Session, name: str, place: str = "") -> Iterator[Resource]:
    """Yield all existing resources, also of nested stacks."""
    pages = client(session).get_paginator("list_stack_resources")
    for page in pages.paginate(StackName=name):
        for each in page["StackResourceSummaries"]:
            identifier = each.get("PhysicalResourceId", "")
            if not identifier or each["ResourceStatus"] == "DELETE_COMPLETE":
                continue
            here = place + each["LogicalResourceId"]
            yield Resource(here, each["ResourceType"], identifier)
            if each["ResourceType"] == "AWS::CloudFormation::Stack":
                yield from resources(session, identifier, f"{here}/")
