"""The translated stacks, created in moto's server as far as it supports them.

That is networks, security group rules, the database and repositories. It lacks MasterUserSecret,
TCP listeners, versions of functions from images, HTTP APIs from a body, and alarms.
"""

import copy
import json
from typing import Any

import boto3
import pytest

from tests.infra.deployment import DEPLOYED, translate

pytestmark = [
    pytest.mark.usefixtures("aws"),
    # It ignores egress rules of security groups, with a warning.
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]


def create(template: str, *without: str, **parameters: str) -> dict[str, str]:
    """Create a stack from a template `without` some paths in it; return its outputs."""
    body = copy.deepcopy(translate(template, parameters))
    for path in without:
        *folders, last = path.split(".")
        parent = body
        for folder in folders:
            parent = parent[folder]
        del parent[last]
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=template,
        TemplateBody=json.dumps(body),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = client.describe_stacks(StackName=template)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


@pytest.fixture
def network(aws: str) -> dict[str, str]:
    return create("network", Zones="")


@pytest.fixture
def security(network: dict[str, str]) -> dict[str, str]:
    return create(
        "security",
        Connection="pgbouncer",
        VpcId=network["VpcId"],
        S3PrefixList=DEPLOYED["S3PrefixList"],
        Endpoints=network["EndpointSecurityGroup"],
        TaskEndpoints=network["TaskEndpointSecurityGroup"],
        ExistingDatabase="",
    )


def ingress_of(group: str) -> set[tuple[int, str]]:
    """Return port and source group of each ingress rule; none may name an address."""
    response: Any = boto3.client("ec2").describe_security_groups(GroupIds=[group])
    rules = response["SecurityGroups"][0]["IpPermissions"]
    assert not [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    return {
        (rule["FromPort"], pair["GroupId"]) for rule in rules for pair in rule["UserIdGroupPairs"]
    }


def test_subnets_are_in_two_zones_without_internet_access(network: dict[str, str]) -> None:
    ec2 = boto3.client("ec2")
    subnets = ec2.describe_subnets(SubnetIds=network["SubnetIds"].split(","))["Subnets"]
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == 2
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network["VpcId"]]}])[
        "RouteTables"
    ]
    gateways = {route.get("GatewayId") for table in tables for route in table["Routes"]}
    assert not [name for name in gateways if name and name.startswith(("igw-", "nat-"))]


def test_each_security_group_admits_the_previous_one_in_the_chain(
    network: dict[str, str], security: dict[str, str]
) -> None:
    assert ingress_of(security["Function"]) == set()
    assert ingress_of(security["Migration"]) == set()
    assert ingress_of(security["Balancer"]) == {(5432, security["Function"])}
    assert ingress_of(security["Pooler"]) == {(6432, security["Balancer"])}
    assert ingress_of(security["Database"]) == {
        (5432, security["Pooler"]),
        (5432, security["Migration"]),
    }
    assert ingress_of(network["EndpointSecurityGroup"]) == {
        (443, security[name]) for name in ("Function", "Pooler", "Migration")
    }
    assert ingress_of(network["TaskEndpointSecurityGroup"]) == {
        (443, security[name]) for name in ("Pooler", "Migration")
    }


def test_the_database_is_private_encrypted_and_requires_tls(
    network: dict[str, str], security: dict[str, str]
) -> None:
    outputs = create(
        "database",
        "Outputs.AdminSecret",
        "Resources.Instance.Properties.DBParameterGroupName",  # moto fails on the reference there
        Prefix="warm-engine",
        Connection="pgbouncer",
        DeletionProtection="true",
        SubnetIds=network["SubnetIds"],
        SecurityGroup=security["Database"],
        InstanceClass="db.t4g.small",
        MultiAz="true",
        Storage="20",
    )
    rds = boto3.client("rds")
    [database] = rds.describe_db_instances(DBInstanceIdentifier=outputs["Identifier"])[
        "DBInstances"
    ]
    assert (database["StorageEncrypted"], database["PubliclyAccessible"]) == (True, False)
    group = rds.describe_db_parameter_groups()["DBParameterGroups"][0]["DBParameterGroupName"]
    parameters = {
        parameter["ParameterName"]: parameter["ParameterValue"]
        for parameter in rds.describe_db_parameters(DBParameterGroupName=group)["Parameters"]
    }
    assert parameters["rds.force_ssl"] == "1"


def test_image_tags_are_immutable() -> None:
    outputs = create("registry", Prefix="warm-engine")
    repositories = boto3.client("ecr").describe_repositories()["repositories"]
    assert {repository["repositoryUri"] for repository in repositories} == set(outputs.values())
    assert {repository["imageTagMutability"] for repository in repositories} == {"IMMUTABLE"}
