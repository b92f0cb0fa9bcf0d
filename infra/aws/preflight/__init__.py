"""Preflight checks: finds what would make a deployment fail before anything is created.

Each check is a function that yields faults, and all faults are reported together.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.aws import budget, parameters, stacks, template_file, trust
from infra.aws.account import (
    Account,
    OperatorError,
    error_code,
    explain,
    identify,
    is_denied,
    one_line,
)
from infra.aws.images import BUILDER, PLATFORMS
from infra.aws.parameters import Fault

#: Statuses in which a stack cannot be updated, and the solution.
UNUSABLE = {
    "ROLLBACK_COMPLETE": "its first creation failed: `make destroy STACK={stack}`, then again",
    "ROLLBACK_FAILED": "its first creation failed: `make destroy STACK={stack}`, then again",
    "CREATE_FAILED": "its first creation failed: `make destroy STACK={stack}`, then again",
    "DELETE_FAILED": "its deletion failed: `make destroy STACK={stack}`, then again",
    "UPDATE_ROLLBACK_FAILED": (
        "fix the problem in its events, then "
        "`aws cloudformation continue-update-rollback --stack-name {name}`"
    ),
    "UPDATE_FAILED": "`aws cloudformation rollback-stack --stack-name {name}`",
}


@dataclass
class Plan:
    """The result of successful checks: what to deploy."""

    stack: str
    is_new: bool
    parameters: dict[str, str]
    account: Account
    budget: budget.Budget
    notes: list[str]


@dataclass
class _Findings:
    """What the checks have found so far."""

    stack: str
    chosen: dict[str, str]
    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    stored: dict[str, str] = field(default_factory=dict)
    values: dict[str, str] = field(default_factory=dict)
    account_concurrency: int | None = None


def examine(words: Sequence[str], stack: str) -> Plan:
    """Run the checks and return the plan. Raises OperatorError with all faults."""
    chosen, faults = parameters.parse(words)
    found = _Findings(stack, chosen, faults)
    found.faults += _stack_name(stack)
    account = None
    try:
        account = identify()
    except OperatorError as error:
        found.faults.append(Fault(str(error), "The checks of the account were skipped"))
    if account is not None:
        for check in (_stacks, _concurrency, _names, _quotas, *_GIVEN):
            _run(partial(check, found, account), found)
    found.values = parameters.effective(found.chosen, found.stored) | found.values
    invalid = list(parameters.faults(found.values, account.region if account else ""))
    found.faults += invalid
    found.faults += _unmovable(found)
    sized = None if invalid else _budget(found)
    _run(partial(_docker, found.values.get("Architecture", "x86_64")), found)
    if found.faults or account is None or sized is None:
        raise OperatorError(_report(found))
    return Plan(stack, not found.stored, found.values, account, sized, found.notes)


def _stack_name(stack: str) -> Iterator[Fault]:
    """Check the stack's name, which is part of the names of resources."""
    declared = template_file.read("template")["Parameters"]["Prefix"]
    longest, prefix = declared["MaxLength"], stacks.prefix_of(stack)
    if re.fullmatch(declared["AllowedPattern"], prefix) and len(stack) <= longest:
        return
    allowed = f"Letters, digits and single hyphens, a letter first, at most {longest}: STACK=…"
    yield Fault(f"the stack's name {stack} cannot be used", allowed)


def _report(found: _Findings) -> str:
    count = "1 fault" if len(found.faults) == 1 else f"{len(found.faults)} faults"
    lines = [f"nothing was created: {count}"]
    for fault in found.faults:
        lines += [f"  - {fault.what}", f"    {fault.remedy}"]
    lines += [
        f"  (not checked: {note})" for note in found.notes if note.startswith("not permitted")
    ]
    return "\n".join(lines)


def _run(check: Callable[[], Iterator[Fault]], found: _Findings) -> None:
    """Run a check. A denied request is not a fault: a deployment needs fewer permissions."""
    try:
        for fault in check():  # one by one, to keep those that come before an error
            found.faults.append(fault)
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and is_denied(error):
            found.notes.append(f"not permitted: {one_line(error)}")
        else:
            found.faults.append(Fault(f"AWS returns an error: {explain(error)}", "Try again"))


# --- Checks of the account -----------------------------------------------------------------------


def _stacks(found: _Findings, account: Account) -> Iterator[Fault]:
    """Find stacks that cannot be updated or belong to another application."""
    for name in (found.stack, stacks.registry_of(found.stack), stacks.SAM_STACK):
        stack = stacks.find(account.session, name)
        if stack is None:
            continue
        if stack.status.endswith("_IN_PROGRESS"):
            yield Fault(f"the stack {name} is {stack.status}", "Wait until it has finished")
        elif stack.status in UNUSABLE:
            remedy = UNUSABLE[stack.status].format(name=name, stack=found.stack)
            if name == stacks.SAM_STACK:
                remedy = f"`aws cloudformation delete-stack --stack-name {name}`, then again"
            yield Fault(f"the stack {name} is {stack.status}", remedy[0].upper() + remedy[1:])
        if name == stacks.SAM_STACK:
            continue
        if not (stack.is_deployment if name == found.stack else stack.is_registry):
            yield Fault(f"the stack {name} is another application's", "Use another name: STACK=…")
        elif name == found.stack:
            found.stored = stack.parameters


def _concurrency(found: _Findings, account: Account) -> Iterator[Fault]:
    """Check the reservation against the account's quota, and choose a default that fits."""
    limits = account.session.client("lambda").get_account_settings()["AccountLimit"]
    quota = found.account_concurrency = int(limits["ConcurrentExecutions"])
    own = found.stored.get("ReservedConcurrency", "0")
    others = quota - int(limits["UnreservedConcurrentExecutions"]) - int(own)
    possible = max(quota - others - budget.UNRESERVED, 0)
    values = parameters.effective(found.chosen, found.stored)
    wanted = values["ReservedConcurrency"]
    if not wanted.isdecimal() or int(wanted) <= possible:
        return
    more = _quota_increase("lambda", "L-B99A9384", int(wanted) + others + budget.UNRESERVED)
    if found.stored or "ReservedConcurrency" in found.chosen:
        yield Fault(
            f"ReservedConcurrency={wanted}, and Lambda allows {possible} of this region's {quota}",
            f"ReservedConcurrency={possible}{'' if possible else ' (no reservation)'}, or {more}",
        )
        return
    found.values["ReservedConcurrency"] = str(possible)
    found.notes.append(
        f"this region's Lambda quota is {quota}: deployed with ReservedConcurrency={possible}"
        f"{'' if possible else ' (no reservation)'} instead of {wanted}. For more: {more}; "
        f'then make deploy ARGS="ReservedConcurrency={wanted}"'
    )


def _names(found: _Findings, account: Account) -> Iterator[Fault]:
    """Find names that are in use by resources outside of our stacks."""
    secrets = account.session.client("secretsmanager")
    name = trust.secret_name(found.stack)
    try:
        if secrets.describe_secret(SecretId=name).get("DeletedDate"):
            yield Fault(
                f"the secret {name} is scheduled for deletion and keeps its name until then",
                f"`aws secretsmanager restore-secret --secret-id {name}`, or another STACK=…",
            )
    except secrets.exceptions.ResourceNotFoundException:
        pass
    registry = stacks.registry_of(found.stack)
    if stacks.find(account.session, registry) is not None:
        return
    ecr = account.session.client("ecr")
    for repository in _repositories(found.stack):
        try:
            ecr.describe_repositories(repositoryNames=[repository])
        except ecr.exceptions.RepositoryNotFoundException:
            continue
        yield Fault(
            f"the repository {repository} exists, but not the stack {registry}",
            f"`aws ecr delete-repository --force --repository-name {repository}`, "
            "or another STACK=…",
        )


def _repositories(stack: str) -> list[str]:
    """Return the repositories' names in registry.yaml for that stack."""
    names: list[str] = []
    for resource in template_file.read("registry")["Resources"].values():
        name: Any = resource["Properties"].get("RepositoryName", "")
        text = str(name.get("Fn::Sub", "") if isinstance(name, dict) else name)
        names.append(text.replace("${Prefix}", stacks.prefix_of(stack)))
    return names


def _quotas(found: _Findings, account: Account) -> Iterator[Fault]:
    """Check the quotas of VPCs and Fargate."""
    values = parameters.effective(found.chosen, found.stored)
    if not values["VpcId"] and not found.stored:
        allowed = _quota(account, "vpc", "L-F678F1CE")
        used = len(account.session.client("ec2").describe_vpcs()["Vpcs"])
        if allowed is not None and used >= allowed:
            yield Fault(
                f"this region has {used} VPCs, and its quota allows no more",
                "Use an existing one: VpcId=… SubnetIds=… EndpointSecurityGroup=…, or "
                f"{_quota_increase('vpc', 'L-F678F1CE', used + 1)}",
            )
    if values["Connection"] == "pgbouncer" and values["PoolerTasks"].isdecimal():
        pooler = template_file.read("pooler")["Resources"]
        rolling = pooler["Service"]["Properties"]["DeploymentConfiguration"]
        most = int(values["PoolerTasks"]) * rolling["MaximumPercent"] / 100
        needed = most * int(pooler["Task"]["Properties"]["Cpu"]) / 1024
        allowed = _quota(account, "fargate", "L-3032A538")
        if allowed is not None and allowed < needed:
            yield Fault(
                f"a deployment needs {needed:g} vCPU of Fargate, but the quota is {allowed:g}",
                _quota_increase("fargate", "L-3032A538", needed + 4),
            )


def _quota(account: Account, service: str, code: str) -> float | None:
    """Return a quota, or None if AWS does not know it."""
    quotas = account.session.client("service-quotas")
    try:
        found = quotas.get_service_quota(ServiceCode=service, QuotaCode=code)
    except ClientError as error:
        if error_code(error) != "NoSuchResourceException":
            raise
        return None
    return float(found["Quota"]["Value"])


def _quota_increase(service: str, code: str, value: float) -> str:
    return (
        f"aws service-quotas request-service-quota-increase --service-code {service} "
        f"--quota-code {code} --desired-value {value:g}"
    )


# --- Checks of your own VPC and database ----------------------------------------------------------


def _given(found: _Findings, account: Account, *names: str) -> list[str]:
    """Return the values of these parameters, without those whose format is invalid."""
    values = parameters.effective(found.chosen, found.stored)
    given = [(name, values[name]) for name in names]
    return [v for name, v in given if v and parameters.has_shape(name, v, account.region)]


def _vpc(found: _Findings, account: Account) -> Iterator[Fault]:
    ec2 = account.session.client("ec2")
    for vpc in _given(found, account, "VpcId"):
        if not ec2.describe_vpcs(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Vpcs"]:
            yield Fault(f"there is no VPC {vpc}", f"VpcId=… of a VPC in {account.region}")


def _subnets(found: _Findings, account: Account) -> Iterator[Fault]:
    """Check for two zones, over which RDS, the load balancer and PgBouncer's tasks are spread."""
    ec2, vpc = account.session.client("ec2"), _given(found, account, "VpcId")
    for value in _given(found, account, "SubnetIds"):
        wanted = parameters.listed(value)
        there = ec2.describe_subnets(Filters=[{"Name": "subnet-id", "Values": wanted}])["Subnets"]
        missing = sorted({*wanted} - {each["SubnetId"] for each in there})
        if missing:
            yield Fault(f"there is no subnet {', '.join(missing)}", "SubnetIds=… of your VPC")
        foreign = sorted(each["SubnetId"] for each in there if [each["VpcId"]] != vpc)
        if vpc and foreign:
            yield Fault(f"{', '.join(foreign)}: not in {vpc[0]}", "SubnetIds=… of your VPC")
        zones = {each["AvailabilityZone"] for each in there}
        if not missing and len(zones) < 2:
            yield Fault(f"the subnets are all in {', '.join(zones)}", "SubnetIds=… in two zones")


def _security_groups(found: _Findings, account: Account) -> Iterator[Fault]:
    ec2, vpc = account.session.client("ec2"), _given(found, account, "VpcId")
    names = ("EndpointSecurityGroup", "TaskEndpointSecurityGroup", "DatabaseSecurityGroup")
    for group in dict.fromkeys(_given(found, account, *names)):
        there = ec2.describe_security_groups(Filters=[{"Name": "group-id", "Values": [group]}])
        if not there["SecurityGroups"]:
            yield Fault(f"there is no security group {group}", f"Use one in {account.region}")
        elif vpc and there["SecurityGroups"][0]["VpcId"] != vpc[0]:
            yield Fault(f"the security group {group} is not in {vpc[0]}", "Use one of your VPC")


def _zones(found: _Findings, account: Account) -> Iterator[Fault]:
    for value in _given(found, account, "Zones"):
        wanted = parameters.listed(value)
        there = account.session.client("ec2").describe_availability_zones()["AvailabilityZones"]
        names = {each["ZoneName"] for each in there}
        if missing := sorted({*wanted} - names):
            yield Fault(
                f"there is no zone {', '.join(missing)}", f"Zones: {', '.join(sorted(names))}"
            )


def _administrator(found: _Findings, account: Account) -> Iterator[Fault]:
    secrets = account.session.client("secretsmanager")
    for secret in _given(found, account, "DatabaseAdminSecret"):
        try:
            secrets.describe_secret(SecretId=secret)
        except secrets.exceptions.ResourceNotFoundException:
            yield Fault(
                f"there is no secret {secret}", "DatabaseAdminSecret=… of an existing secret"
            )


def _administrator_key(found: _Findings, account: Account) -> Iterator[Fault]:
    kms = account.session.client("kms")
    for key in _given(found, account, "DatabaseAdminSecretKey"):
        try:
            kms.describe_key(KeyId=key)
        except kms.exceptions.NotFoundException:
            yield Fault(
                f"there is no KMS key {key}",
                "DatabaseAdminSecretKey=… of the key that encrypts DatabaseAdminSecret",
            )


def _alarm_topic(found: _Findings, account: Account) -> Iterator[Fault]:
    sns = account.session.client("sns")
    for topic in _given(found, account, "AlarmTopic"):
        try:
            sns.get_topic_attributes(TopicArn=topic)
        except sns.exceptions.NotFoundException:
            yield Fault(
                f"there is no SNS topic {topic}",
                "AlarmTopic=… of an existing topic, or AlarmTopic= for alarms without messages",
            )


def _database(found: _Findings, account: Account) -> Iterator[Fault]:
    """Check the instance's existence and endpoint, and the class that the budget is made for."""
    values = parameters.effective(found.chosen, found.stored)
    identifier = values["DatabaseIdentifier"]
    if not values["DatabaseHost"] or not identifier:
        return
    rds = account.session.client("rds")
    try:
        there = rds.describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"][0]
    except rds.exceptions.DBInstanceNotFoundFault:
        yield Fault(
            f"there is no RDS instance {identifier}", "DatabaseIdentifier=… of an existing instance"
        )
        return
    endpoint = there.get("Endpoint", {}).get("Address")
    if endpoint is None:
        yield Fault(
            f"{identifier} has no endpoint yet (status {there['DBInstanceStatus']})",
            "Wait until it is available",
        )
    elif endpoint.lower() != values["DatabaseHost"].lower():
        yield Fault(
            f"DatabaseHost={values['DatabaseHost']} is not the endpoint of {identifier}",
            f"DatabaseHost={endpoint}, or the DatabaseIdentifier=… of that host",
        )
    if there["DBInstanceClass"] != values["InstanceClass"]:
        yield Fault(
            f"{identifier} is a {there['DBInstanceClass']}, but the connection budget is "
            f"calculated for InstanceClass={values['InstanceClass']}",
            f"InstanceClass={there['DBInstanceClass']}",
        )


_GIVEN = (
    _vpc,
    _subnets,
    _security_groups,
    _zones,
    _administrator,
    _administrator_key,
    _alarm_topic,
    _database,
)


def _unmovable(found: _Findings) -> Iterator[Fault]:
    """Find changes for which CloudFormation would delete the database, or fail to move it."""
    if not found.stored:
        return
    before, after = parameters.effective({}, found.stored), found.values
    if bool(before["DatabaseHost"]) != bool(after["DatabaseHost"]):
        effect = (
            "delete the stack's database" if after["DatabaseHost"] else "create an empty database"
        )
        yield Fault(
            f"DatabaseHost was {before['DatabaseHost'] or 'empty'}: the change would {effect}, "
            "and no data is moved",
            f"Keep DatabaseHost={before['DatabaseHost']}. To move, deploy another stack "
            "(STACK=…) on the other database, copy the data, then `make destroy` this one",
        )
    names = ("VpcId", "SubnetIds") if before["VpcId"] or after["VpcId"] else ("Zones",)
    for name in names:
        if {*parameters.listed(before[name])} != {*parameters.listed(after[name])}:
            yield Fault(
                f"{name} was {before[name] or 'empty'}: the database, the load balancer and the "
                "functions cannot be moved to another network",
                f"Keep {name}={before[name]}. To move, deploy another stack there (STACK=…), "
                "copy the data, then `make destroy` this one",
            )


# --- Checks of this machine ----------------------------------------------------------------------


def _budget(found: _Findings) -> budget.Budget | None:
    names = {each.name for each in fields(budget.Budget)}
    values: dict[str, Any] = {k: v for k, v in found.values.items() if k in names}
    if found.account_concurrency is not None:
        values["AccountConcurrency"] = found.account_concurrency
    try:
        sized = budget.from_templates(**values)
    except ValueError as error:
        found.faults.append(Fault(str(error), "make budget"))
        return None
    if not budget.fits(sized):
        table = budget.table(sized).replace("\n", "\n    ")
        found.faults.append(Fault("the connection budget does not fit", table))
        return None
    return sized


def _docker(architecture: str) -> Iterator[Fault]:
    """Check that Docker has buildx and can build for `architecture`."""
    wanted = PLATFORMS.get(architecture)
    here = _output("docker", "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}").strip()
    if not here:
        yield Fault("Docker does not respond", "Install and start it: it builds the images")
        return
    if not _output("docker", "buildx", "version"):
        yield Fault(
            "Docker has no buildx, which builds the images",
            "Install docker-buildx-plugin (Docker's packages) or docker-buildx (Debian, Ubuntu)",
        )
        return
    builder = _output(*BUILDER).strip()
    if wanted and here != wanted and wanted not in _output("docker", "buildx", "inspect", builder):
        yield Fault(
            f"this Docker engine is {here} and cannot build for Architecture={architecture}",
            "`docker run --privileged --rm tonistiigi/binfmt --install "
            f"{wanted.removeprefix('linux/')}`, or build on such a machine",
        )


def _output(*command: str) -> str:
    """Return a program's output; empty if it fails or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
