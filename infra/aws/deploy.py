"""`make deploy`: deploys this checkout to one account and region.

`python -m infra.aws.deploy [PARAMETER=VALUE …]` with the parameters of template.yaml. The steps are
preflight, repositories, certificate, images, stack. The environment selects the account and region
(AWS_PROFILE, AWS_REGION) and the stack (STACK, by default warm-engine). If PLAN names a file, the
changes are written to it and nothing is deployed.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import boto3

from infra.aws import (
    account,
    budget,
    images,
    plan,
    preflight,
    programs,
    stacks,
    template_file,
    trust,
)


def main() -> int:
    words, stack, report = sys.argv[1:], stacks.chosen_name(), os.environ.get("PLAN")
    if report:
        return account.command("deploy", lambda: show(words, stack, Path(report)))
    return account.command("deploy", lambda: deploy(words, stack))


def show(words: Sequence[str], stack: str, report: Path) -> int:
    """Print what a deployment would change, and write it to `report`."""
    checked = preflight.examine(words, stack)
    session = checked.account.session
    existing = stacks.get(session, stack)
    parameters = {**existing.parameters, **checked.parameters}
    parameters["BudgetedConnections"] = connection_alarm_threshold(checked.budget)
    parameters["Release"] = release(parameters)
    text = plan.changes(session, existing, parameters)
    report.write_text(text)
    print(text)
    return 0


def deploy(words: Sequence[str], stack: str) -> int:
    checked = preflight.examine(words, stack)
    session, region = checked.account.session, checked.account.region
    print(f"account {checked.account.number}, {region}, as {checked.account.arn}, stack {stack}")
    for note in checked.notes:
        print(f"note: {note}", flush=True)

    registry, prefix = stacks.registry_of(stack), stacks.prefix_of(stack)
    programs.sam("registry", registry, region, Prefix=prefix)
    repositories = repositories_of(session, registry)
    parameters = {"DeletionProtection": "true", **checked.parameters, "Prefix": prefix}
    parameters["BudgetedConnections"] = connection_alarm_threshold(checked.budget)
    parameters["S3PrefixList"] = s3_prefix_list(session)
    parameters["PoolerTlsSecret"] = trust.prepare(session, stack)
    for name in images.IMAGES:
        repository = repositories[name.capitalize()]
        image = images.push(session, name, repository, parameters["Architecture"], stack)
        parameters[f"{name.capitalize()}Image"] = image
    parameters["Release"] = release(parameters)
    parameters["SecretVersions"] = secret_versions(session, stack)
    if checked.is_new:
        # A failed creation can only be rolled back if its resources are not protected.
        unprotected = {**parameters, "DeletionProtection": "false"}
        programs.sam("template", stack, region, repositories["Function"], **unprotected)
    programs.sam("template", stack, region, repositories["Function"], **parameters)
    outputs = stacks.get(session, stack).outputs
    print(f"\naccepted requests: {outputs['Callers']}\n{outputs['Url']}/orders/1")
    return 0


def repositories_of(session: boto3.Session, registry: str) -> dict[str, str]:
    """Return the repository of each image, from the outputs of the registry's stack."""
    outputs = stacks.get(session, registry).outputs
    missing = [name for name in map(str.capitalize, images.IMAGES) if name not in outputs]
    if missing:
        raise account.OperatorError(
            f"the stack {registry} has no output {', '.join(missing)}: it was not created from "
            "registry.yaml, or its creation failed. Delete it, or use another name: STACK=…"
        )
    return outputs


def connection_alarm_threshold(connection_budget: budget.Budget) -> str:
    """Return how many database connections the alarm allows."""
    return str(budget.limits(connection_budget)[-1].capacity_and_use(connection_budget)[1])


def release(parameters: dict[str, str]) -> str:
    """Return a digest of parameters and templates. A new value publishes a new version."""
    inputs = {k: v for k, v in parameters.items() if k not in ("Release", "SecretVersions")}
    digest = hashlib.sha256(json.dumps(inputs, sort_keys=True).encode())
    for path in sorted(template_file.FOLDER.glob("*.yaml")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def secret_versions(session: boto3.Session, stack: str) -> str:
    """Return the current versions of the secrets whose passwords a migration sets in Postgres.

    The version is `none` for a secret that was never changed. The first deployment creates the
    secret and cannot know its version. If the second deployment passed the real version, the
    migration would run again and every PgBouncer would be replaced, although nothing had changed.
    """
    existing, client = stacks.find(session, stack), session.client("secretsmanager")
    versions = []
    for name in ("OwnerSecret", "LookupSecret"):
        stages: dict[str, list[str]] = {}
        if existing and name in existing.outputs:  # otherwise this deployment creates it
            secret = client.describe_secret(SecretId=existing.outputs[name])
            stages = secret["VersionIdsToStages"]
        current = [version for version, labels in stages.items() if "AWSCURRENT" in labels]
        was_changed = any("AWSPREVIOUS" in labels for labels in stages.values())
        versions += current if was_changed else ["none"]
    return ",".join(versions)


def s3_prefix_list(session: boto3.Session) -> str:
    """Return the identifier of the region's prefix list for S3."""
    name = f"com.amazonaws.{session.region_name}.s3"
    lists = session.client("ec2").describe_managed_prefix_lists(
        Filters=[{"Name": "prefix-list-name", "Values": [name]}]
    )["PrefixLists"]
    if not lists:
        raise account.OperatorError(f"this region has no prefix list {name}")
    return str(lists[0]["PrefixListId"])


if __name__ == "__main__":
    sys.exit(main())
