"""`make destroy`: deletes a deployment after listing what is deleted and what is kept.

`python -m infra.aws.destroy`; STACK is the stack, FORCE=1 skips the confirmation. Run it again to
continue an interrupted deletion. It keeps a final snapshot of the database, which costs money.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from infra.aws import account, plan, stacks, trust
from infra.aws.account import OperatorError

#: Lambda releases the network interfaces of functions in a VPC within about 20 minutes ("Giving
#: Lambda functions access to resources in an Amazon VPC"); RDS's final snapshot takes time too.
WAIT_SECONDS, POLL_SECONDS = 7200, 15
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
    """The resources of a deployment. `kept` is what is not deleted."""

    stack: str
    stacks: list[str] = field(default_factory=list)
    databases: list[str] = field(default_factory=list)
    secrets: list[str] = field(default_factory=list)
    log_groups: list[str] = field(default_factory=list)
    objects: int = 0
    bucket: str = ""
    shares_bucket: bool = False
    kept: list[str] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.stacks or self.secrets or self.objects)


def main() -> int:
    return account.command("destroy", lambda: destroy(stacks.chosen_name()))


def destroy(stack: str, answer: Callable[[str], str] = input) -> int:
    who = account.identify()
    found = take_stock(who.session, stack)
    if not found:
        print(f"there is no {stack} in account {who.number}, {who.region}")
        return 0
    print(f"account {who.number}, {who.region}, as {who.arn}\n{describe(found)}", flush=True)
    if os.environ.get("FORCE") != "1" and not _confirmed(stack, answer):
        raise OperatorError("nothing was deleted")
    delete(who.session, found)
    snapshots = snapshots_of(who.session, found.databases)
    print(f"{stack} is deleted")
    for snapshot in snapshots:
        print(
            f"kept: the snapshot {snapshot}, which costs money. `aws rds delete-db-snapshot "
            f"--db-snapshot-identifier {snapshot}` deletes the data for good"
        )
    return 0


def _confirmed(stack: str, answer: Callable[[str], str]) -> bool:
    try:
        return answer(f"Type {stack} to delete all that: ").strip() == stack
    except EOFError:
        raise OperatorError("no terminal to confirm; nothing was deleted. Set FORCE=1") from None


# --- Inventory -----------------------------------------------------------------------------------


def take_stock(session: boto3.Session, stack: str) -> Inventory:
    found = Inventory(stack)
    resources: list[stacks.Resource] = []
    for name in (stack, stacks.registry_of(stack)):
        there = stacks.find(session, name, empty=True)
        if there is None:
            continue
        _check_owner(there, is_registry=name != stack)
        found.stacks.append(name)
        resources += stacks.resources(session, name)
    found.databases = [each.identifier for each in resources if each.kind == "AWS::RDS::DBInstance"]
    found.log_groups = sorted(_log_groups(session, resources))
    found.secrets = _secrets(session, stack)
    _take_stock_of_bucket(session, found)
    found.kept = [f"a final snapshot of the database {each}" for each in found.databases]
    if found.shares_bucket:
        found.kept.append(f"SAM's bucket {found.bucket}: other applications use it")
    return found


def _check_owner(found: stacks.Stack, *, is_registry: bool) -> None:
    """Raise OperatorError for another application's stack, unless it has no resources."""
    if found.status == "REVIEW_IN_PROGRESS":
        return
    if not (found.is_registry if is_registry else found.is_deployment):
        raise OperatorError(
            f"the stack {found.name} is another application's, and nothing was deleted. "
            "Use the name of a stack that `make deploy` created: STACK=…"
        )


def _log_groups(session: boto3.Session, resources: list[stacks.Resource]) -> set[str]:
    logs = session.client("logs")
    found: set[str] = set()
    for each in resources:
        if each.kind == "AWS::Logs::LogGroup":
            found.add(each.identifier)
        elif each.kind in _LOG_GROUPS:
            prefix = _LOG_GROUPS[each.kind].format(each.identifier)
            for page in logs.get_paginator("describe_log_groups").paginate(
                logGroupNamePrefix=prefix
            ):
                names = {group["logGroupName"] for group in page["logGroups"]}
                # Another group's name may start with ours.
                found |= names if prefix.endswith("/") else names & {prefix}
    return found


def _secrets(session: boto3.Session, stack: str) -> list[str]:
    secrets, name = session.client("secretsmanager"), trust.secret_name(stack)
    try:
        secrets.describe_secret(SecretId=name)
    except secrets.exceptions.ResourceNotFoundException:
        return []
    return [name]


def _take_stock_of_bucket(session: boto3.Session, found: Inventory) -> None:
    sam = stacks.find(session, stacks.SAM_STACK)
    if sam is None or "SourceBucket" not in sam.outputs:
        return
    found.bucket = sam.outputs["SourceBucket"]
    for key, _ in _versions(session, found.bucket):
        if key.partition("/")[0] in _prefixes(found.stack):
            found.objects += 1
        else:
            found.shares_bucket = True


def _prefixes(stack: str) -> tuple[str, ...]:
    return stack, stacks.registry_of(stack), plan.s3_prefix(stack)


def _versions(session: boto3.Session, bucket: str) -> list[tuple[str, str]]:
    """Return key and version of every object, including old versions."""
    pages = session.client("s3").get_paginator("list_object_versions").paginate(Bucket=bucket)
    return [
        (each["Key"], each["VersionId"])
        for page in pages
        for each in [*page.get("Versions", []), *page.get("DeleteMarkers", [])]
    ]


def describe(found: Inventory) -> str:
    lines = ["deletes"]
    lines += [f"  the stack {each}" for each in found.stacks]
    lines += [f"  the database {each}, with its backups" for each in found.databases]
    lines += [f"  the secret {each}, at once" for each in found.secrets]
    lines += [f"  the log group {each}" for each in found.log_groups]
    if found.objects:
        rest = "" if found.shares_bucket else ", and the bucket with its stack"
        lines.append(f"  templates in SAM's bucket {found.bucket}: {found.objects}{rest}")
    lines += ["keeps", *(f"  {each}" for each in found.kept or ["nothing"])]
    lines.append(
        "It takes up to an hour: security groups and subnets can only be deleted after Lambda has "
        "released its network interfaces."
    )
    return "\n".join(lines)


# --- Deletion ------------------------------------------------------------------------------------


def delete(session: boto3.Session, found: Inventory) -> None:
    rds = session.client("rds")
    for database in found.databases:
        print(f"the database {database}: deletion protection off", flush=True)
        with contextlib.suppress(rds.exceptions.DBInstanceNotFoundFault):  # creation failed
            rds.modify_db_instance(
                DBInstanceIdentifier=database, DeletionProtection=False, ApplyImmediately=True
            )
    for name in found.stacks:  # the registry last: functions and tasks use its images
        _delete_stack(session, name)
    secrets = session.client("secretsmanager")
    for secret in found.secrets:
        print(f"the secret {secret}", flush=True)
        secrets.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
    logs = session.client("logs")
    for group in found.log_groups:
        try:
            logs.delete_log_group(logGroupName=group)
        except logs.exceptions.ResourceNotFoundException:
            continue  # deleted with its stack
        print(f"the log group {group}", flush=True)
    _empty_bucket(session, found)


def _delete_stack(session: boto3.Session, name: str) -> None:
    print(f"the stack {name} …", flush=True)
    client = stacks.client(session)
    request: Any = {"StackName": name}
    if role := os.environ.get("CLOUDFORMATION_ROLE"):
        request["RoleARN"] = role
    try:
        client.delete_stack(**request)
    except ClientError as error:
        # CloudFormation keeps the role of the last deployment: infra/aws/github/roles.yaml.
        if "cannot be assumed" not in str(error):
            raise
        raise OperatorError(
            f"the stack {name} cannot be deleted: {account.one_line(error)}. Create a role that "
            "CloudFormation can assume and that may delete all of it, then "
            "`CLOUDFORMATION_ROLE=ARN make destroy`"
        ) from None
    try:
        client.get_waiter("stack_delete_complete").wait(
            StackName=name,
            WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": WAIT_SECONDS // POLL_SECONDS},
        )
    except WaiterError:
        left = [
            f"{each.place} ({each.identifier})"
            for each in stacks.resources(session, name)
            if each.kind != "AWS::CloudFormation::Stack"
        ]
        raise OperatorError(
            f"the stack {name} cannot be deleted: {', '.join(left) or 'see its events'} remains. "
            "Run `make destroy` again: Lambda may not have released its network interfaces"
        ) from None


def _empty_bucket(session: boto3.Session, found: Inventory) -> None:
    if not found.objects:
        return
    print(f"templates in SAM's bucket {found.bucket}: {found.objects}", flush=True)
    s3: Any = session.client("s3")
    for key, version in _versions(session, found.bucket):
        if key.partition("/")[0] in _prefixes(found.stack):
            s3.delete_object(Bucket=found.bucket, Key=key, VersionId=version)
    if not found.shares_bucket:
        _delete_stack(session, stacks.SAM_STACK)


def snapshots_of(session: boto3.Session, databases: list[str]) -> list[str]:
    pages = session.client("rds").get_paginator("describe_db_snapshots")
    return [
        each["DBSnapshotIdentifier"]
        for page in pages.paginate(SnapshotType="manual")
        for each in page["DBSnapshots"]
        if each["DBInstanceIdentifier"] in databases
    ]


if __name__ == "__main__":
    sys.exit(main())
