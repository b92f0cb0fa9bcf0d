"""Who reaches whom in what CloudFormation would make: the chain from function to database alone."""

from tests.infra.deployment import (
    BOTH,
    DEPLOYED,
    WITH_PGBOUNCER,
    WITH_PROXY,
    Stack,
    deployment,
)

# --- Who reaches whom ----------------------------------------------------------------------------

DATABASE_PORT, POOLER_PORT, HTTPS = 5432, 6432, 443
ENDPOINTS, S3 = "Network/EndpointGroup", DEPLOYED["S3PrefixList"]
COMMON = {
    ("Security/Pooler", "Security/Database", DATABASE_PORT),
    ("Security/Migration", "Security/Database", DATABASE_PORT),
    ("Security/Function", ENDPOINTS, HTTPS),
    ("Security/Pooler", ENDPOINTS, HTTPS),
    ("Security/Migration", ENDPOINTS, HTTPS),
}
TO_S3 = {("Security/Pooler", S3, HTTPS), ("Security/Migration", S3, HTTPS)}
CHAIN = {
    "pgbouncer": COMMON
    | {
        ("Security/Function", "Security/Balancer", DATABASE_PORT),
        ("Security/Balancer", "Security/Pooler", POOLER_PORT),
    },
    "rds-proxy": COMMON | {("Security/Function", "Security/Pooler", DATABASE_PORT)},
}


@BOTH
def test_the_function_reaches_only_the_pooler_and_the_pooler_only_the_database(
    stack: Stack,
) -> None:
    leaving, coming = set(), set()
    for rule in stack.of_type("AWS::EC2::SecurityGroupEgress").values():
        to = rule.get("DestinationSecurityGroupId") or rule["DestinationPrefixListId"]
        assert rule["FromPort"] == rule["ToPort"]
        assert rule["IpProtocol"] == "tcp"
        leaving.add((rule["GroupId"], to, rule["FromPort"]))
    for rule in stack.of_type("AWS::EC2::SecurityGroupIngress").values():
        assert rule["FromPort"] == rule["ToPort"]
        assert rule["IpProtocol"] == "tcp"
        coming.add((rule["SourceSecurityGroupId"], rule["GroupId"], rule["FromPort"]))
    chain = CHAIN[stack.parameters["Connection"]]
    assert leaving == chain | TO_S3
    assert coming == chain


@BOTH
def test_no_rule_names_an_address(stack: Stack) -> None:
    for group in stack.of_type("AWS::EC2::SecurityGroup").values():
        assert "SecurityGroupIngress" not in group
        assert [rule["CidrIp"] for rule in group["SecurityGroupEgress"]] == ["127.0.0.1/32"]
    for kind in ("Ingress", "Egress"):
        for rule in stack.of_type(f"AWS::EC2::SecurityGroup{kind}").values():
            assert not rule.keys() & {"CidrIp", "CidrIpv6"}


def test_everybody_wears_his_own_group() -> None:
    there, proxy = WITH_PGBOUNCER.resources, WITH_PROXY.resources
    worn = {
        "function": there["Function/Function"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "migration": there["Migration/Migrate"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "rotation": there["Migration/Rotate"]["Properties"]["VpcConfig"]["SecurityGroupIds"],
        "balancer": there["Pooler/Balancer"]["Properties"]["SecurityGroups"],
        "pooler": there["Pooler/Service"]["Properties"]["NetworkConfiguration"][
            "AwsvpcConfiguration"
        ]["SecurityGroups"],
        "proxy": proxy["Proxy/Proxy"]["Properties"]["VpcSecurityGroupIds"],
        "database": there["Database/Instance"]["Properties"]["VPCSecurityGroups"],
    }
    assert worn == {
        "function": ["Security/Function"],
        "migration": ["Security/Migration"],
        "rotation": ["Security/Migration"],
        "balancer": ["Security/Balancer"],
        "pooler": ["Security/Pooler"],
        "proxy": ["Security/Pooler"],
        "database": ["Security/Database"],
    }


def test_nothing_has_a_way_to_the_internet() -> None:
    kinds = {resource["Type"] for resource in WITH_PGBOUNCER.resources.values()}
    assert not kinds & {"AWS::EC2::InternetGateway", "AWS::EC2::NatGateway", "AWS::EC2::Route"}
    assert not WITH_PGBOUNCER.resources["Database/Instance"]["Properties"]["PubliclyAccessible"]
    assert WITH_PGBOUNCER.resources["Pooler/Balancer"]["Properties"]["Scheme"] == "internal"


def test_a_vpc_and_a_database_of_one_s_own_are_used_and_none_is_made() -> None:
    stack = deployment(
        VpcId="vpc-1",
        SubnetIds="subnet-1,subnet-2",
        EndpointSecurityGroup="sg-endpoints",
        DatabaseHost="db.example",
        DatabaseIdentifier="orders",
        DatabaseSecurityGroup="sg-database",
        DatabaseAdminSecret="arn:admin",
    )
    assert not [place for place in stack.resources if place.startswith(("Network/", "Database/"))]
    entries = stack.of_type("AWS::EC2::SecurityGroupIngress").values()
    assert {rule["GroupId"] for rule in entries} == {
        "sg-endpoints",
        "sg-database",
        "Security/Balancer",
        "Security/Pooler",
    }
    function = stack.resources["Function/Function"]["Properties"]
    assert function["VpcConfig"]["SubnetIds"] == ["subnet-1", "subnet-2"]
    migrate = stack.resources["Migration/Migrate"]["Properties"]["Environment"]["Variables"]
    assert (migrate["DB_HOST"], migrate["ADMIN_SECRET_ARN"]) == ("db.example", "arn:admin")
