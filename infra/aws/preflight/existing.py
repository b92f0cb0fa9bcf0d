"""Checks the resources that the parameters refer to: a VPC, a database, an alarm topic."""

from __future__ import annotations

from collections.abc import Iterator

from infra.aws import parameters
from infra.aws.account import Account
from infra.aws.parameters import Problem
from infra.aws.preflight.findings import Check, Findings


def _vpc(findings: Findings, account: Account) -> Iterator[Problem]:
    ec2 = account.session.client("ec2")
    for vpc in findings.well_formed(account, "VpcId"):
        if not ec2.describe_vpcs(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Vpcs"]:
            yield Problem(f"there is no VPC {vpc}", f"VpcId=… of a VPC in {account.region}")


def _subnets(findings: Findings, account: Account) -> Iterator[Problem]:
    """Check for two zones, over which RDS, the load balancer and PgBouncer's tasks are spread."""
    ec2, vpc = account.session.client("ec2"), findings.well_formed(account, "VpcId")
    for value in findings.well_formed(account, "SubnetIds"):
        requested = parameters.listed(value)
        subnets = ec2.describe_subnets(Filters=[{"Name": "subnet-id", "Values": requested}])[
            "Subnets"
        ]
        missing = sorted({*requested} - {subnet["SubnetId"] for subnet in subnets})
        if missing:
            yield Problem(f"there is no subnet {', '.join(missing)}", "SubnetIds=… of your VPC")
        outside = sorted(subnet["SubnetId"] for subnet in subnets if [subnet["VpcId"]] != vpc)
        if vpc and outside:
            yield Problem(f"{', '.join(outside)}: not in {vpc[0]}", "SubnetIds=… of your VPC")
        zones = {subnet["AvailabilityZone"] for subnet in subnets}
        if not missing and len(zones) < 2:
            yield Problem(f"the subnets are all in {', '.join(zones)}", "SubnetIds=… in two zones")


def _security_groups(findings: Findings, account: Account) -> Iterator[Problem]:
    ec2, vpc = account.session.client("ec2"), findings.well_formed(account, "VpcId")
    names = ("EndpointSecurityGroup", "TaskEndpointSecurityGroup", "DatabaseSecurityGroup")
    for identifier in dict.fromkeys(findings.well_formed(account, *names)):
        groups = ec2.describe_security_groups(
            Filters=[{"Name": "group-id", "Values": [identifier]}]
        )["SecurityGroups"]
        if not groups:
            yield Problem(
                f"there is no security group {identifier}", f"Use one in {account.region}"
            )
        elif vpc and groups[0]["VpcId"] != vpc[0]:
            yield Problem(
                f"the security group {identifier} is not in {vpc[0]}", "Use one of your VPC"
            )


def _zones(findings: Findings, account: Account) -> Iterator[Problem]:
    for value in findings.well_formed(account, "Zones"):
        zones = account.session.client("ec2").describe_availability_zones()["AvailabilityZones"]
        names = {zone["ZoneName"] for zone in zones}
        if missing := sorted({*parameters.listed(value)} - names):
            yield Problem(
                f"there is no zone {', '.join(missing)}", f"Zones: {', '.join(sorted(names))}"
            )


def _administrator_secret(findings: Findings, account: Account) -> Iterator[Problem]:
    secrets = account.session.client("secretsmanager")
    for secret in findings.well_formed(account, "DatabaseAdminSecret"):
        try:
            secrets.describe_secret(SecretId=secret)
        except secrets.exceptions.ResourceNotFoundException:
            yield Problem(
                f"there is no secret {secret}", "DatabaseAdminSecret=… of an existing secret"
            )


def _administrator_key(findings: Findings, account: Account) -> Iterator[Problem]:
    kms = account.session.client("kms")
    for key in findings.well_formed(account, "DatabaseAdminSecretKey"):
        try:
            kms.describe_key(KeyId=key)
        except kms.exceptions.NotFoundException:
            yield Problem(
                f"there is no KMS key {key}",
                "DatabaseAdminSecretKey=… of the key that encrypts DatabaseAdminSecret",
            )


def _alarm_topic(findings: Findings, account: Account) -> Iterator[Problem]:
    sns = account.session.client("sns")
    for topic in findings.well_formed(account, "AlarmTopic"):
        try:
            sns.get_topic_attributes(TopicArn=topic)
        except sns.exceptions.NotFoundException:
            yield Problem(
                f"there is no SNS topic {topic}",
                "AlarmTopic=… of an existing topic, or AlarmTopic= for alarms without messages",
            )


def _database(findings: Findings, account: Account) -> Iterator[Problem]:
    """Check the instance's existence and endpoint, and the class that the budget is made for."""
    requested = findings.parameters
    identifier = requested["DatabaseIdentifier"]
    if not requested["DatabaseHost"] or not identifier:
        return
    rds = account.session.client("rds")
    try:
        [instance] = rds.describe_db_instances(DBInstanceIdentifier=identifier)["DBInstances"]
    except rds.exceptions.DBInstanceNotFoundFault:
        yield Problem(
            f"there is no RDS instance {identifier}", "DatabaseIdentifier=… of an existing instance"
        )
        return
    endpoint = instance.get("Endpoint", {}).get("Address")
    if endpoint is None:
        yield Problem(
            f"{identifier} has no endpoint yet (status {instance['DBInstanceStatus']})",
            "Wait until it is available",
        )
    elif endpoint.lower() != requested["DatabaseHost"].lower():
        yield Problem(
            f"DatabaseHost={requested['DatabaseHost']} is not the endpoint of {identifier}",
            f"DatabaseHost={endpoint}, or the DatabaseIdentifier=… of that host",
        )
    if instance["DBInstanceClass"] != requested["InstanceClass"]:
        yield Problem(
            f"{identifier} is a {instance['DBInstanceClass']}, but the connection budget is "
            f"calculated for InstanceClass={requested['InstanceClass']}",
            f"InstanceClass={instance['DBInstanceClass']}",
        )


CHECKS: tuple[Check, ...] = (
    _vpc,
    _subnets,
    _security_groups,
    _zones,
    _administrator_secret,
    _administrator_key,
    _alarm_topic,
    _database,
)
