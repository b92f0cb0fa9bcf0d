"""Lists what a deployment would change, from a CloudFormation change set that is never executed.

The change set has the images that the stack has, because a pull request may not push images. So if
only the handler's code has changed, the list is empty.
"""

from __future__ import annotations

import re
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError, WaiterError

from infra.aws import programs, stacks, template_file
from infra.aws.account import OperatorError

#: What CloudFormation's reason contains if nothing would change.
_NOTHING = ("didn't contain changes", "No updates are to be performed")


def s3_prefix(stack: str) -> str:
    """Return the prefix for a plan's uploads: it may not write to that of the deployment."""
    return f"{stack}-plan"


def changes(session: boto3.Session, stack: stacks.Stack, parameters: dict[str, str]) -> str:
    """Return a Markdown table of the changes, including nested stacks if possible."""
    with tempfile.TemporaryDirectory() as folder:
        packaged = Path(folder) / "template.yaml"
        programs.package("template", s3_prefix(stack.name), str(session.region_name), packaged)
        body = packaged.read_text()
    declared = template_file.read("template")["Parameters"]
    values = [
        {"ParameterKey": key, "ParameterValue": value}
        for key, value in parameters.items()
        if key in declared
    ]
    client: Any = stacks.client(session)
    try:
        return _table(stack.name, _planned(client, stack.name, body, values, nested=True))
    except OperatorError as error:
        # Values that are known only during a deployment make a nested change set fail, although
        # the deployment would succeed: aws-cloudformation/cfn-language-discussion#152.
        rows = _planned(client, stack.name, body, values, nested=False)
        return f"{_table(stack.name, rows)}\nNested stacks are not shown: {error}\n"


def _planned(
    client: Any, stack: str, body: str, parameters: list[dict[str, str]], *, nested: bool
) -> list[tuple[str, ...]]:
    """Create a change set, return its rows as `_rows` does, and delete it."""
    name = f"plan-{uuid.uuid4().hex}"
    client.create_change_set(
        StackName=stack,
        ChangeSetName=name,
        ChangeSetType="UPDATE",
        TemplateBody=body,
        IncludeNestedStacks=nested,
        Capabilities=["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"],
        Parameters=parameters,
    )
    try:
        client.get_waiter("change_set_create_complete").wait(StackName=stack, ChangeSetName=name)
        return sorted(set(_rows(client, stack, name)))
    except WaiterError:
        reason = _reason(client.describe_change_set(StackName=stack, ChangeSetName=name), client)
        if any(message in reason for message in _NOTHING):
            return []
        raise OperatorError(f"CloudFormation cannot plan that: {reason}") from None
    finally:
        _delete(client, stack, name)


def _reason(change_set: dict[str, Any], client: Any) -> str:
    """Return why a change set failed, from a nested one if that is the cause.

    See aws/aws-sam-cli#2406.
    """
    reason = str(change_set.get("StatusReason", "no reason given"))
    if nested := re.search(r"arn:\S+:changeSet/[\w/-]+", reason):
        return _reason(client.describe_change_set(ChangeSetName=nested[0]), client)
    return reason


def _delete(client: Any, stack: str, name: str) -> None:
    try:
        client.delete_change_set(StackName=stack, ChangeSetName=name)
    except ClientError as error:
        print(f"the change set {name} was not deleted: {error}")


def _rows(client: Any, stack: str, name: str, parent: str = "") -> Iterator[tuple[str, ...]]:
    """Yield path, type, action and replacement of each change; `parent` is the path of `stack`."""
    token: dict[str, str] = {}
    while True:
        page = client.describe_change_set(StackName=stack, ChangeSetName=name, **token)
        for entry in page.get("Changes", []):
            change = entry["ResourceChange"]
            path = parent + change["LogicalResourceId"]
            if nested := change.get("ChangeSetId"):
                identifier = change.get("PhysicalResourceId") or stack
                yield from _rows(client, identifier, nested, f"{path}/")
            else:
                replacement = change.get("Replacement", "")
                yield path, change["ResourceType"], change["Action"], replacement
        if "NextToken" not in page:
            return
        token = {"NextToken": page["NextToken"]}


def _table(stack: str, rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return f"`{stack}`: no resource changes (images are not compared).\n"
    lines = [
        f"Changes to `{stack}` (images are not compared):\n",
        "| resource | type | action | replaced |",
    ]
    lines += ["|---|---|---|---|", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join(lines) + "\n"
