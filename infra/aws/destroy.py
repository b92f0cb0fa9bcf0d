"""`make destroy`: deletes a deployment after listing what is deleted and what is kept.

`python -m infra.aws.destroy`; STACK is the stack, FORCE=1 skips the confirmation. Run it again to
continue an interrupted deletion. It keeps a final snapshot of the database, which costs money.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from infra.aws import account, stacks
from infra.aws.account import OperatorError
from infra.aws.inventory import Inventory, belongs_to, object_versions, take_inventory

#: Lambda releases the network interfaces of functions in a VPC within about 20 minutes ("Giving
#: Lambda functions access to resources in an Amazon VPC"); RDS's final snapshot takes time too.
WAIT_SECONDS, POLL_SECONDS = 7200, 15


def main() -> int:
    return account.command("destroy", lambda: destroy(stacks.chosen_name()))


def destroy(stack: str, ask: Callable[[str], str] = input) -> int:
    """Delete the deployment `stack` if the operator, whom `ask` prompts, confirms it."""
    operator = account.identify()
    location = f"account {operator.number}, {operator.region}"
    inventory = take_inventory(operator.session, stack)
    if not inventory:
        print(f"there is no deployment {stack} in {location}")
        return 0
    print(f"{location}, as {operator.arn}\n{inventory.describe()}", flush=True)
    if os.environ.get("FORCE") != "1" and not _confirmed(stack, ask):
        raise OperatorError("nothing was deleted")
    delete(operator.session, inventory)
    print(f"{stack} is deleted")
    for snapshot in snapshots_of(operator.session, inventory.databases):
        print(
            f"kept: the snapshot {snapshot}, which costs money. `aws rds delete-db-snapshot "
            f"--db-snapshot-identifier {snapshot}` deletes the data for good"
        )
    return 0


def _confirmed(stack: str, ask: Callable[[str], str]) -> bool:
    try:
        return ask(f"Type {stack} to delete all that: ").strip() == stack
    except EOFError:
        raise OperatorError("no terminal to confirm; nothing was deleted. Set FORCE=1") from None


def delete(session: boto3.Session, inventory: Inventory) -> None:
    rds = session.client("rds")
    for database in inventory.databases:
        print(f"the database {database}: deletion protection off", flush=True)
        with contextlib.suppress(rds.exceptions.DBInstanceNotFoundFault):  # creation failed
            rds.modify_db_instance(
                DBInstanceIdentifier=database, DeletionProtection=False, ApplyImmediately=True
            )
    for name in inventory.stacks:  # the registry last: functions and tasks use its images
        _delete_stack(session, name)
    secrets = session.client("secretsmanager")
    for secret in inventory.secrets:
        print(f"the secret {secret}", flush=True)
        secrets.delete_secret(SecretId=secret, ForceDeleteWithoutRecovery=True)
    logs = session.client("logs")
    for group in inventory.log_groups:
        try:
            logs.delete_log_group(logGroupName=group)
        except logs.exceptions.ResourceNotFoundException:
            continue  # deleted with its stack
        print(f"the log group {group}", flush=True)
    _empty_bucket(session, inventory)


def _delete_stack(session: boto3.Session, name: str) -> None:
    """Delete a stack and wait for it. Raises OperatorError if it cannot be deleted."""
    print(f"the stack {name} …", flush=True)
    client = stacks.client(session)
    request: Any = {"StackName": name}
    if role := os.environ.get("CLOUDFORMATION_ROLE"):
        request["RoleARN"] = role
    try:
        client.delete_stack(**request)
    except ClientError as error:
        # Without RoleARN CloudFormation uses the role of the last deployment, which is that of
        # infra/aws/github/roles.yaml if GitHub deployed.
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
        remaining = [
            f"{resource.path} ({resource.identifier})"
            for resource in stacks.resources(session, name)
            if resource.kind != "AWS::CloudFormation::Stack"
        ]
        raise OperatorError(
            f"the stack {name} cannot be deleted: {', '.join(remaining) or 'see its events'} "
            "remains. The stack's events contain the reasons. If Lambda has not released its "
            "network interfaces, run `make destroy` again later"
        ) from None


def _empty_bucket(session: boto3.Session, inventory: Inventory) -> None:
    """Delete the deployment's objects from SAM's bucket and, if no others are in it, the bucket."""
    if not inventory.objects:
        return
    print(f"templates in SAM's bucket {inventory.bucket}: {inventory.objects}", flush=True)
    s3 = session.client("s3")
    for key, version in object_versions(session, inventory.bucket):
        if belongs_to(key, inventory.stack):
            s3.delete_object(Bucket=inventory.bucket, Key=key, VersionId=version)
    if not inventory.shares_bucket:
        _delete_stack(session, stacks.SAM_STACK)


def snapshots_of(session: boto3.Session, databases: list[str]) -> list[str]:
    """Return the snapshots of `databases` that were not created by automated backups."""
    pages = session.client("rds").get_paginator("describe_db_snapshots")
    return [
        snapshot["DBSnapshotIdentifier"]
        for page in pages.paginate(SnapshotType="manual")
        for snapshot in page["DBSnapshots"]
        if snapshot["DBInstanceIdentifier"] in databases
    ]


if __name__ == "__main__":
    sys.exit(main())
