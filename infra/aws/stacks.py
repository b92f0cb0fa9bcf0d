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
    """The state of a CloudFormation stack. `updated` is when it was last created or updated."""

    name: str
    status: str
    parameters: dict[str, str]
    outputs: dict[str, str]
    updated: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def is_deployment(self) -> bool:
        """Whether `make deploy` created it: other stacks have no parameter `Release`."""
        return "Release" in self.parameters

    @property
    def is_registry(self) -> bool:
        """Whether it was created from registry.yaml."""
        return registry_of(self.parameters.get("Prefix", "")) == self.name.lower()


@dataclass(frozen=True)
class Resource:
    """A resource of a stack or a nested stack; `path` is such as `Pooler/Service`."""

    path: str
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
    """Return the prefix of the names of resources: the stack's name in lower case."""
    return stack.lower()


def find(session: boto3.Session, name: str, *, include_empty: bool = False) -> Stack | None:
    """Return the stack with this name or ARN, or None.

    A stack that has no resources yet is returned only with `include_empty`.
    """
    try:
        [stack] = client(session).describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if error_code(error) == "ValidationError":  # "Stack with id … does not exist"
            return None
        raise
    status = stack["StackStatus"]
    if status == "DELETE_COMPLETE" or (status == "REVIEW_IN_PROGRESS" and not include_empty):
        return None
    return Stack(
        name,
        status,
        {entry["ParameterKey"]: entry["ParameterValue"] for entry in stack.get("Parameters", [])},
        {entry["OutputKey"]: entry["OutputValue"] for entry in stack.get("Outputs", [])},
        stack.get("LastUpdatedTime", stack["CreationTime"]),
    )


def get(session: boto3.Session, name: str) -> Stack:
    """Return a stack by its name or ARN. Raises OperatorError if there is none."""
    stack = find(session, name)
    if stack is None:
        region = session.region_name
        raise OperatorError(f"there is no stack {name} in {region}. Set STACK=… or AWS_REGION=…")
    return stack


def resources(session: boto3.Session, name: str, parent: str = "") -> Iterator[Resource]:
    """Yield all existing resources, those of nested stacks too; `parent` is the path of `name`."""
    paginator = client(session).get_paginator("list_stack_resources")
    for page in paginator.paginate(StackName=name):
        for summary in page["StackResourceSummaries"]:
            identifier, kind = summary.get("PhysicalResourceId", ""), summary["ResourceType"]
            if not identifier or summary["ResourceStatus"] == "DELETE_COMPLETE":
                continue
            path = parent + summary["LogicalResourceId"]
            yield Resource(path, kind, identifier)
            if kind == "AWS::CloudFormation::Stack":
                yield from resources(session, identifier, f"{path}/")
