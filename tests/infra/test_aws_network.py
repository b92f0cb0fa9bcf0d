"""The network access that the templates create, and nothing beyond it."""

from typing import Any

import pytest

from tests.infra.deployment import BOTH, DEPLOYED, WITH_PGBOUNCER, WITH_PROXY, Stack, deployment

DATABASE_PORT, POOLER_PORT, HTTPS = 5432, 6432, 443
#: Security groups of the endpoints: Secrets Manager's, and those of ECR and Logs.
ENDPOINTS, TASK_ENDPOINTS = "Network/EndpointGroup", "Network/TaskEndpointGroup"
S3_PREFIX_LIST = DEPLOYED["S3PrefixList"]
COMMON = {
    ("Security/Pooler", "Security/Database", DATABASE_PORT),
    ("Security/Migration", "Security/Database", DATABASE_PORT),
    ("Security/Pooler", ENDPOINTS, HTTPS),
    ("Security/Migration", ENDPOINTS, HTTPS),
    ("Security/Pooler", TASK_ENDPOINTS, HTTPS),
    ("Security/Migration", TASK_ENDPOINTS, HTTPS),
}
TO_S3 = {("Security/Pooler", S3_PREFIX_LIST, HTTPS), ("Security/Migration", S3_PREFIX_LIST, HTTPS)}
EXPECTED_RULES = {
    "pgbouncer": COMMON
    | {
        ("Security/Function", ENDPOINTS, HTTPS),
        ("Security/Function", "Security/Balancer", DATABASE_PORT),
        ("Security/Balancer", "Security/Pooler", POOLER_PORT),
    },
    "rds-proxy": COMMON | {("Security/Function", "Security/Pooler", DATABASE_PORT)},
}


@BOTH
def test_security_groups_allow_exactly_the_expected_traffic(stack: Stack) -> None:
    egress, ingress = set(), set()
    for rule in stack.of_type("AWS::EC2::SecurityGroupEgress").values():
        to = rule.get("DestinationSecurityGroupId") or rule["DestinationPrefixListId"]
        assert rule["FromPort"] == rule["ToPort"]
        assert rule["IpProtocol"] == "tcp"
        egress.add((rule["GroupId"], to, rule["FromPort"]))
    for rule in stack.of_type("AWS::EC2::SecurityGroupIngress").values():
        assert rule["FromPort"] == rule["ToPort"]
        assert rule["IpProtocol"] == "tcp"
        ingress.add((rule["SourceSecurityGroupId"], rule["GroupId"], rule["FromPort"]))
    expected = EXPECTED_RULES[stack.parameters["Connection"]]
    assert egress == expected | TO_S3
    assert ingress == expected


@BOTH
def test_no_rule_opens_an_address_range(stack: Stack) -> None:
    for group in stack.of_type("AWS::EC2::SecurityGroup").values():
        assert "SecurityGroupIngress" not in group
        # A placeholder, which replaces the rule that EC2 adds by default: all traffic, to anywhere.
        assert [rule["CidrIp"] for rule in group["SecurityGroupEgress"]] == ["127.0.0.1/32"]
    for kind in ("Ingress", "Egress"):
        for rule in stack.of_type(f"AWS::EC2::SecurityGroup{kind}").values():
            assert not rule.keys() & {"CidrIp", "CidrIpv6"}


EXISTING_VPC = {"VpcId": "vpc-1", "SubnetIds": "subnet-1,subnet-2", "EndpointSecurityGroup": "sg-a"}


def test_in_an_existing_vpc_only_the_given_endpoints_are_reachable() -> None:
    stack = deployment(**EXISTING_VPC, TaskEndpointSecurityGroup="sg-b")
    rules = stack.of_type("AWS::EC2::SecurityGroupEgress").values()
    reached = {
        (rule["GroupId"], rule["DestinationSecurityGroupId"])
        for rule in rules
        if str(rule.get("DestinationSecurityGroupId")).startswith("sg-")
    }
    callers = ("Security/Pooler", "Security/Migration")
    assert reached == {
        ("Security/Function", "sg-a"),
        *((caller, group) for caller in callers for group in ("sg-a", "sg-b")),
    }


def test_a_shared_endpoint_group_gets_no_duplicate_rules() -> None:
    """EC2 rejects duplicates."""
    stack = deployment(**EXISTING_VPC)
    for kind in ("Ingress", "Egress"):
        rules = [
            sorted((name, str(value)) for name, value in rule.items() if name != "Description")
            for rule in stack.of_type(f"AWS::EC2::SecurityGroup{kind}").values()
        ]
        assert all(rules.count(rule) == 1 for rule in rules)


def endpoint_policy_statements() -> dict[str, list[dict[str, Any]]]:
    """Return the statements of each service's endpoint policy."""
    return {
        endpoint["ServiceName"].removeprefix("com.amazonaws.eu-central-1."): endpoint[
            "PolicyDocument"
        ]["Statement"]
        for endpoint in WITH_PGBOUNCER.of_type("AWS::EC2::VPCEndpoint").values()
    }


def test_endpoint_policies_allow_only_this_account() -> None:
    policies = endpoint_policy_statements()
    assert policies.keys() == {"s3", "secretsmanager", "ecr.api", "ecr.dkr", "logs"}
    buckets = {statement["Resource"] for statement in policies.pop("s3")}
    assert buckets == {  # buckets that AWS owns
        "arn:aws:s3:::prod-eu-central-1-starport-layer-bucket/*",
        "arn:aws:s3:::cloudformation-custom-resource-response-eucentral1/*",
    }
    for service, statements in policies.items():
        for statement in statements:
            if statement["Resource"] == "*":  # actions that do not support resources
                assert statement["Action"] in (
                    "ecr:GetAuthorizationToken",
                    "secretsmanager:GetRandomPassword",
                )
            else:
                arn_prefix = f"arn:aws:{service.partition('.')[0]}:eu-central-1:123456789012:"
                assert statement["Resource"].startswith(arn_prefix)


def actions(statements: list[dict[str, Any]]) -> set[str]:
    found: set[str] = set()
    for statement in statements:
        action = statement["Action"]
        found |= {action} if isinstance(action, str) else set(action)
    return found


def test_endpoint_policies_allow_exactly_the_actions_of_the_roles() -> None:
    allowed = {
        action
        for role in WITH_PGBOUNCER.of_type("AWS::IAM::Role").values()
        for policy in role.get("Policies", [])
        for action in actions(policy["PolicyDocument"]["Statement"])
    }
    # Used by the flow log service, from outside the VPC.
    allowed -= {"logs:DescribeLogGroups", "logs:DescribeLogStreams"}
    for service, statements in endpoint_policy_statements().items():
        name = service.partition(".")[0]
        if name != "s3":
            wanted = {action for action in allowed if action.startswith(f"{name}:")}
            assert actions(statements) == wanted, service


@pytest.mark.parametrize("zones", ["eu-central-1b,eu-central-1c", "eu-central-1b, eu-central-1c"])
def test_availability_zones_can_be_chosen(zones: str) -> None:
    """CloudFormation trims the members of a CommaDelimitedList; moto does not."""
    subnets = deployment(Zones=zones).of_type("AWS::EC2::Subnet")
    chosen = [subnet["AvailabilityZone"] for subnet in subnets.values()]
    assert chosen == ["eu-central-1b", "eu-central-1c"]


def test_the_flow_log_role_can_write_but_not_create_the_log_group() -> None:
    """With CreateLogGroup, which "IAM role for publishing flow logs to CloudWatch Logs" (Amazon VPC
    User Guide) lists too, a late record would create the deleted log group again."""
    [policy] = WITH_PGBOUNCER.resources["Network/FlowLogRole"]["Properties"]["Policies"]
    assert actions(policy["PolicyDocument"]["Statement"]) == {
        "logs:CreateLogStream",
        "logs:DescribeLogGroups",
        "logs:DescribeLogStreams",
        "logs:PutLogEvents",
    }


def test_each_component_has_the_expected_security_group() -> None:
    resources, proxy = WITH_PGBOUNCER.resources, WITH_PROXY.resources
    groups = {
        "function": resources["Function/Function"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "migration": resources["Migration/Migrate"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "rotation": resources["Migration/Rotate"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "balancer": resources["Pooler/Balancer"]["Properties"]["SecurityGroups"],
        "pooler": resources["Pooler/Service"]["Properties"]["NetworkConfiguration"][
            "AwsvpcConfiguration"
        ]["SecurityGroups"],
        "proxy": proxy["Proxy/Proxy"]["Properties"]["VpcSecurityGroupIds"],
        "database": resources["Database/Instance"]["Properties"]["VPCSecurityGroups"],
    }
    assert groups == {
        "function": ["Security/Function"],
        "migration": ["Security/Migration"],
        "rotation": ["Security/Migration"],
        "balancer": ["Security/Balancer"],
        "pooler": ["Security/Pooler"],
        "proxy": ["Security/Pooler"],
        "database": ["Security/Database"],
    }


def test_there_is_no_route_to_or_from_the_internet() -> None:
    kinds = {resource["Type"] for resource in WITH_PGBOUNCER.resources.values()}
    assert not kinds & {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route"}
    assert not WITH_PGBOUNCER.resources["Database/Instance"]["Properties"]["PubliclyAccessible"]
    assert WITH_PGBOUNCER.resources["Pooler/Balancer"]["Properties"]["Scheme"] == "internal"


def test_an_existing_vpc_and_database_are_used() -> None:
    stack = deployment(
        VpcId="vpc-1",
        SubnetIds="subnet-1,subnet-2",
        EndpointSecurityGroup="sg-endpoints",
        DatabaseHost="db.example",
        DatabaseIdentifier="orders",
        DatabaseSecurityGroup="sg-database",
        DatabaseAdminSecret="arn:admin",
    )
    assert not [path for path in stack.resources if path.startswith(("Network/", "Database/"))]
    ingress_rules = stack.of_type("AWS::EC2::SecurityGroupIngress").values()
    assert {rule["GroupId"] for rule in ingress_rules} == {
        "sg-endpoints",
        "sg-database",
        "Security/Balancer",
        "Security/Pooler",
    }
    function = stack.resources["Function/Function"]["Properties"]
    assert function["VpcConfig"]["SubnetIds"] == ["subnet-1", "subnet-2"]
    migrate = stack.resources["Migration/Migrate"]["Properties"]["Environment"]["Variables"]
    assert (migrate["DB_HOST"], migrate["ADMIN_SECRET_ARN"]) == ("db.example", "arn:admin")
