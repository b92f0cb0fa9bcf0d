"""Lists what belongs to a deployment, so that it can be deleted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import boto3

from infra.aws import plan, stacks, trust
from infra.aws.account import OperatorError

#: Log groups that AWS services create for a resource.
_LOG_GROUPS = {
    "AWS::Lambda::Function": "/aws/lambda/{}",
    "AWS::RDS::DBInstance": "/aws/rds/instance/{}/",
    "AWS::RDS::DBProxy": "/aws/rds/proxy/{}",
    "AWS::ECS::Cluster": "/aws/ecs/containerinsights/{}/",
    "AWS::CodeBuild::Project": "/aws/codebuild/{}",
}


@dataclass
class Inventory:
    """The names of the resources of a deployment. Without any, it is falsy."""

    stack: str
    stacks: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    log_groups: list[str] = field(default_factory=list)
    #: SAM's bucket, the number of this deployment's object versions, and whether it has others.
    bucket: str = ""
    objects: int = 0
    shares_bucket: bool = False

    def __bool__(self) -> bool:
        return bool(self.stacks or self.secrets or self.objects)

    def describe(self) -> str:
        """Describe what will be deleted and what will be kept, one item a line."""
        lines = ["deletes"]
        lines += [f"  the stack {name}" for name in self.stacks]
        lines += [f"  the database {name}, with its backups" for name in self.databases]
        lines += [f"  the secret {name}, without a recovery period" for name in self.secrets]
        lines += [f"  the log group {name}" for name in self.log_groups]
        if self.objects:
            with_bucket = "" if self.shares_bucket else "; also the bucket itself and its stack"
            lines.append(f"  {self.objects} templates in SAM's bucket {self.bucket}{with_bucket}")
        kept = [f"  a final snapshot of the database {name}" for name in self.databases]
        if self.shares_bucket:
            kept.append(f"  SAM's bucket {self.bucket}: other applications use it")
        lines += ["keeps", *(kept or ["  nothing"])]
        lines.append(
            "Deletion takes up to an hour: security groups and subnets can only be deleted after "
            "Lambda has released its network interfaces."
        )
        return "\n".join(lines)


def take_inventory(session: boto3.Session, stack: str) -> Inventory:
    """Return what exists of a deployment. Raises OperatorError for another application's stack."""
    inventory = Inventory(stack)
    resources: list[stacks.Resource] = []
    for name in (stack, stacks.registry_of(stack)):
        existing = stacks.find(session, name, include_empty=True)
        if existing is None:
            continue
        _check_owner(existing, is_registry=name != stack)
        inventory.stacks.append(name)
        resources += stacks.resources(session, name)
    inventory.databases = [
        resource.identifier for resource in resources if resource.kind == "AWS::RDS::DBInstance"
    ]
    inventory.log_groups = sorted(_log_groups(session, resources))
    inventory.secrets = _secrets(session, stack)
    _count_objects(session, inventory)
    return inventory


def _check_owner(stack: stacks.Stack, *, is_registry: bool) -> None:
    """Raise OperatorError for another application's stack, unless it has no resources."""
    if stack.status == "REVIEW_IN_PROGRESS":
        return
    if not (stack.is_registry if is_registry else stack.is_deployment):
        raise OperatorError(
            f"the stack {stack.name} belongs to another application; nothing was deleted. "
            "Use the name of a stack that `make deploy` created: STACK=…"
        )


def _log_groups(session: boto3.Session, resources: list[stacks.Resource]) -> set[str]:
    """Return the log groups of the stacks, and those that AWS services created for them."""
    paginator = session.client("logs").get_paginator("describe_log_groups")
    groups: set[str] = set()
    for resource in resources:
        if resource.kind == "AWS::Logs::LogGroup":
            groups.add(resource.identifier)
        elif resource.kind in _LOG_GROUPS:
            prefix = _LOG_GROUPS[resource.kind].format(resource.identifier)
            for page in paginator.paginate(logGroupNamePrefix=prefix):
                names = {group["logGroupName"] for group in page["logGroups"]}
                # Another group's name may start with ours.
                groups |= names if prefix.endswith("/") else names & {prefix}
    return groups


def _secrets(session: boto3.Session, stack: str) -> list[str]:
    secrets, name = session.client("secretsmanager"), trust.secret_name(stack)
    try:
        secrets.describe_secret(SecretId=name)
    except secrets.exceptions.ResourceNotFoundException:
        return []
    return [name]


def _count_objects(session: boto3.Session, inventory: Inventory) -> None:
    sam = stacks.find(session, stacks.SAM_STACK)
    if sam is None or "SourceBucket" not in sam.outputs:
        return
    inventory.bucket = sam.outputs["SourceBucket"]
    for key, _ in object_versions(session, inventory.bucket):
        if belongs_to(key, inventory.stack):
            inventory.objects += 1
        else:
            inventory.shares_bucket = True


def belongs_to(key: str, stack: str) -> bool:
    """Return whether an object in SAM's bucket belongs to the deployment."""
    return key.partition("/")[0] in (stack, stacks.registry_of(stack), plan.s3_prefix(stack))


def object_versions(session: boto3.Session, bucket: str) -> Iterator[tuple[str, str]]:
    """Yield key and version ID of every object, including old versions and delete markers."""
    for page in session.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket):
        for version in (*page.get("Versions", []), *page.get("DeleteMarkers", [])):
            yield version["Key"], version["VersionId"]
