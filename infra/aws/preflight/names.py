"""Checks the names that a deployment uses: of its stacks, a secret and the repositories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from infra.aws import stacks, template_file, trust
from infra.aws.account import Account
from infra.aws.parameters import Problem
from infra.aws.preflight.findings import Findings

_CREATION_FAILED = "its first creation failed: `make destroy STACK={stack}`, then retry"
#: Statuses in which CloudFormation cannot update a stack, and what to do.
UNUSABLE = {
    "ROLLBACK_COMPLETE": _CREATION_FAILED,
    "ROLLBACK_FAILED": _CREATION_FAILED,
    "CREATE_FAILED": _CREATION_FAILED,
    "DELETE_FAILED": "its deletion failed: `make destroy STACK={stack}`, then retry",
    "UPDATE_ROLLBACK_FAILED": (
        "fix the problem in its events, then "
        "`aws cloudformation continue-update-rollback --stack-name {name}`"
    ),
    "UPDATE_FAILED": "`aws cloudformation rollback-stack --stack-name {name}`",
}


def stack_name(stack: str) -> Iterator[Problem]:
    """Check the stack's name, which is part of the names of resources."""
    prefix = template_file.read("template")["Parameters"]["Prefix"]
    is_allowed = re.fullmatch(prefix["AllowedPattern"], stacks.prefix_of(stack))
    longest = prefix["MaxLength"]
    if not is_allowed or len(stack) > longest:
        yield Problem(
            f"the stack's name {stack} cannot be used",
            f"Letters, digits and single hyphens, a letter first, at most {longest}: STACK=…",
        )


def existing_stacks(findings: Findings, account: Account) -> Iterator[Problem]:
    """Find stacks that cannot be updated or belong to another application."""
    for name in (findings.stack, stacks.registry_of(findings.stack), stacks.SAM_STACK):
        stack = stacks.find(account.session, name)
        if stack is None:
            continue
        if stack.status.endswith("_IN_PROGRESS"):
            yield Problem(f"the stack {name} is {stack.status}", "Wait until it has finished")
        elif stack.status in UNUSABLE:
            hint = UNUSABLE[stack.status].format(name=name, stack=findings.stack)
            if name == stacks.SAM_STACK:
                hint = f"`aws cloudformation delete-stack --stack-name {name}`, then retry"
            yield Problem(f"the stack {name} is {stack.status}", hint[0].upper() + hint[1:])
        if name == stacks.SAM_STACK:
            continue
        if not (stack.is_deployment if name == findings.stack else stack.is_registry):
            yield Problem(
                f"the stack {name} belongs to another application", "Use another name: STACK=…"
            )
        elif name == findings.stack:
            findings.stored = stack.parameters


def free_names(findings: Findings, account: Account) -> Iterator[Problem]:
    """Find names that resources outside our stacks already have."""
    secrets = account.session.client("secretsmanager")
    name = trust.secret_name(findings.stack)
    try:
        if secrets.describe_secret(SecretId=name).get("DeletedDate"):
            yield Problem(
                f"the secret {name} is scheduled for deletion and keeps its name until then",
                f"`aws secretsmanager restore-secret --secret-id {name}`, or another STACK=…",
            )
    except secrets.exceptions.ResourceNotFoundException:
        pass
    registry = stacks.registry_of(findings.stack)
    if stacks.find(account.session, registry) is not None:
        return
    ecr = account.session.client("ecr")
    for repository in repositories(findings.stack):
        try:
            ecr.describe_repositories(repositoryNames=[repository])
        except ecr.exceptions.RepositoryNotFoundException:
            continue
        yield Problem(
            f"the repository {repository} exists, but not the stack {registry}",
            f"`aws ecr delete-repository --force --repository-name {repository}`, "
            "or another STACK=…",
        )


def repositories(stack: str) -> list[str]:
    """Return the names that registry.yaml gives to the repositories of `stack`."""
    names: list[str] = []
    for resource in template_file.read("registry")["Resources"].values():
        name: Any = resource["Properties"].get("RepositoryName", "")
        text = str(name.get("Fn::Sub", "") if isinstance(name, dict) else name)
        names.append(text.replace("${Prefix}", stacks.prefix_of(stack)))
    return names
