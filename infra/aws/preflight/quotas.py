"""Checks the account's quotas for Lambda, VPCs and Fargate."""

from __future__ import annotations

from collections.abc import Iterator

from botocore.exceptions import ClientError

from infra.aws import budget, template_file
from infra.aws.account import Account, error_code
from infra.aws.parameters import Problem
from infra.aws.preflight.findings import Findings

#: Quota codes of Service Quotas.
LAMBDA_CONCURRENCY = ("lambda", "L-B99A9384")
VPCS = ("vpc", "L-F678F1CE")
FARGATE_CPUS = ("fargate", "L-3032A538")
#: Lambda's default quota. A new account may have less, but AWS raises none to less than this.
DEFAULT_CONCURRENCY = 1000


def concurrency(findings: Findings, account: Account) -> Iterator[Problem]:
    """Check the reservation against the account's quota, and choose a default that fits."""
    limits = account.session.client("lambda").get_account_settings()["AccountLimit"]
    quota = findings.account_concurrency = int(limits["ConcurrentExecutions"])
    already_reserved = int(findings.stored.get("ReservedConcurrency", "0"))
    reserved_by_others = quota - int(limits["UnreservedConcurrentExecutions"]) - already_reserved
    possible = max(quota - reserved_by_others - budget.UNRESERVED, 0)
    requested = findings.parameters["ReservedConcurrency"]
    if not requested.isdecimal() or int(requested) <= possible:
        return
    needed = int(requested) + reserved_by_others + budget.UNRESERVED
    increase = _increase_command(LAMBDA_CONCURRENCY, max(needed, DEFAULT_CONCURRENCY))
    remark = "" if possible else " (no reservation)"
    if findings.stored or "ReservedConcurrency" in findings.chosen:
        yield Problem(
            f"ReservedConcurrency={requested}, but Lambda allows at most {possible} of this "
            f"region's quota of {quota}",
            f"ReservedConcurrency={possible}{remark}, or {increase}",
        )
        return
    findings.values["ReservedConcurrency"] = str(possible)
    findings.notes.append(
        f"this region's Lambda quota is {quota}: deploying with ReservedConcurrency={possible}"
        f"{remark} instead of {requested}. For more: {increase}; "
        f'then make deploy ARGS="ReservedConcurrency={requested}"'
    )


def vpcs(findings: Findings, account: Account) -> Iterator[Problem]:
    """Check that a VPC can be created, if the first deployment creates one."""
    if findings.parameters["VpcId"] or findings.stored:
        return
    quota = _quota(account, VPCS)
    used = len(account.session.client("ec2").describe_vpcs()["Vpcs"])
    if quota is not None and used >= quota:
        yield Problem(
            f"this region has {used} VPCs, and its quota allows no more",
            "Use an existing one: VpcId=… SubnetIds=… EndpointSecurityGroup=…, or "
            f"{_increase_command(VPCS, used + 1)}",
        )


def fargate(findings: Findings, account: Account) -> Iterator[Problem]:
    """Check the vCPUs of old and new PgBouncer tasks during a deployment."""
    requested = findings.parameters
    if requested["Connection"] != "pgbouncer" or not requested["PoolerTasks"].isdecimal():
        return
    pooler = template_file.read("pooler")["Resources"]
    rolling = pooler["Service"]["Properties"]["DeploymentConfiguration"]
    tasks = int(requested["PoolerTasks"]) * rolling["MaximumPercent"] / 100
    needed = tasks * int(pooler["Task"]["Properties"]["Cpu"]) / 1024
    quota = _quota(account, FARGATE_CPUS)
    if quota is not None and quota < needed:
        yield Problem(
            f"a deployment needs {needed:g} vCPU of Fargate, but the quota is {quota:g}",
            _increase_command(FARGATE_CPUS, needed + 4),
        )


def _quota(account: Account, quota: tuple[str, str]) -> float | None:
    """Return the value of a quota, or None if AWS does not know it."""
    service, code = quota
    try:
        response = account.session.client("service-quotas").get_service_quota(
            ServiceCode=service, QuotaCode=code
        )
    except ClientError as error:
        if error_code(error) != "NoSuchResourceException":
            raise
        return None
    return float(response["Quota"]["Value"])


def _increase_command(quota: tuple[str, str], value: float) -> str:
    """Return the command that requests `value` for a quota."""
    service, code = quota
    return (
        f"aws service-quotas request-service-quota-increase --service-code {service} "
        f"--quota-code {code} --desired-value {value:g}"
    )
