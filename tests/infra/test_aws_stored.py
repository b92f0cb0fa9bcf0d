"""The translated stacks in moto's server, as far as that goes: it stores networks, group rules, a
database and repositories as CloudFormation would have them made. Of the rest it knows no
MasterUserSecret, no TCP listener, no function from an image with a version, no HTTP API from a body
and no alarm: those are in no test but the translator's."""

import copy
import json
from typing import Any

import boto3
import pytest

from tests.infra.deployment import DEPLOYED, translate

pytestmark = [
    pytest.mark.usefixtures("aws"),
    # What it does not know it leaves out, with a warning: rules for leaving a group.
    pytest.mark.filterwarnings("ignore:Tried to parse AWS..EC2..SecurityGroupEgress"),
]


def create(template: str, *without: str, **parameters: str) -> dict[str, str]:
    """A stack from a template, `without` some paths in it; its outputs."""
    body = copy.deepcopy(translate(template, parameters))
    for path in without:
        *folders, last = path.split(".")
        place = body
        for folder in folders:
            place = place[folder]
        del place[last]
    client = boto3.client("cloudformation")
    client.create_stack(
        StackName=template,
        TemplateBody=json.dumps(body),
        Parameters=[{"ParameterKey": k, "ParameterValue": v} for k, v in parameters.items()],
        Capabilities=["CAPABILITY_IAM"],
    )
    stack = client.describe_stacks(StackName=template)["Stacks"][0]
    assert stack["StackStatus"] == "CREATE_COMPLETE"
    return {each["OutputKey"]: each["OutputValue"] for each in stack["Outputs"]}


@pytest.fixture
def network(aws: str) -> dict[str, str]:
    return create("network")


@pytest.fixture
def security(network: dict[str, str]) -> dict[str, str]:
    return create(
        "security",
        Connection="pgbouncer",
        VpcId=network["VpcId"],
        S3PrefixList=DEPLOYED["S3PrefixList"],
        Endpoints=network["EndpointSecurityGroup"],
        ExistingDatabase="",
    )


def coming_in(group: str) -> set[tuple[int, str]]:
    """Port and group of who may come in; nobody may by an address."""
    found: Any = boto3.client("ec2").describe_security_groups(GroupIds=[group])
    rules = found["SecurityGroups"][0]["IpPermissions"]
    assert not [rule for rule in rules if rule["IpRanges"] or rule["Ipv6Ranges"]]
    return {
        (rule["FromPort"], pair["GroupId"]) for rule in rules for pair in rule["UserIdGroupPairs"]
    }


def test_the_subnets_are_in_two_zones_and_have_no_way_out(network: dict[str, str]) -> None:
    ec2 = boto3.client("ec2")
    subnets = ec2.describe_subnets(SubnetIds=network["SubnetIds"].split(","))["Subnets"]
    assert len({subnet["AvailabilityZone"] for subnet in subnets}) == 2
    tables = ec2.describe_route_tables(Filters=[{"Name": "vpc-id", "Values": [network["VpcId"]]}])[
        "RouteTables"
    ]
    ways = {route.get("GatewayId") for table in tables for route in table["Routes"]}
    assert not [way for way in ways if way and way.startswith(("igw-", "nat-"))]


def test_each_group_lets_in_the_one_before_it_in_the_chain(
    network: dict[str, str], security: dict[str, str]
) -> None:
    assert coming_in(security["Function"]) == set()
    assert coming_in(security["Migration"]) == set()
    assert coming_in(security["Balancer"]) == {(5432, security["Function"])}
    assert coming_in(security["Pooler"]) == {(6432, security["Balancer"])}
    assert coming_in(security["Database"]) == {
        (5432, security["Pooler"]),
        (5432, security["Migration"]),
    }
    assert coming_in(network["EndpointSecurityGroup"]) == {
        (443, security[name]) for name in ("Function", "Pooler", "Migration")
    }


def test_the_database_is_private_encrypted_and_asks_for_tls(
    network: dict[str, str], security: dict[str, str]
) -> None:
    made = create(
        "database",
        "Outputs.AdminSecret",
        "Resources.Instance.Properties.DBParameterGroupName",  # it fails on a reference there
        SubnetIds=network["SubnetIds"],
        SecurityGroup=security["Database"],
        InstanceClass="db.t4g.small",
        MultiAz="true",
        Storage="20",
    )
    rds = boto3.client("rds")
    found = rds.describe_db_instances(DBInstanceIdentifier=made["Identifier"])["DBInstances"]
    database = found[0]
    assert (database["StorageEncrypted"], database["PubliclyAccessible"]) == (True, False)
    group = rds.describe_db_parameter_groups()["DBParameterGroups"][0]["DBParameterGroupName"]
    parameters = {
        each["ParameterName"]: each["ParameterValue"]
        for each in rds.describe_db_parameters(DBParameterGroupName=group)["Parameters"]
    }
    assert parameters["rds.force_ssl"] == "1"


def test_what_is_in_a_repository_cannot_be_replaced() -> None:
    made = create("registry")
    found = boto3.client("ecr").describe_repositories()["repositories"]
    assert {each["repositoryUri"] for each in found} == set(made.values())
    assert {each["imageTagMutability"] for each in found} == {"IMMUTABLE"}
