"""`make deploy` reports all problems at once, each with a hint, before it creates anything."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

from infra.aws import parameters, preflight, stacks
from infra.aws.account import OperatorError
from infra.aws.preflight import names
from infra.local import ROOT
from tests.infra import aws_double
from tests.infra.aws_double import (
    DOCKER,
    DOCKER_FOR_BOTH,
    DOCKER_WITHOUT_BUILDX,
    REGION,
    LambdaSettings,
    client,
)

#: No profile, no credentials file, no metadata service.
NO_CREDENTIALS = {
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
}
EUROPE = {"AWS_REGION": REGION}
#: Well-formed parameters of an existing VPC, and of a database in it.
VPC = {
    "VpcId": "vpc-0123abcd",
    "SubnetIds": "subnet-0123abcd, subnet-0123456789abcdef0",
    "EndpointSecurityGroup": "sg-0123abcd",
}
DATABASE = VPC | {
    "DatabaseHost": "shop.abc.eu-central-1.rds.amazonaws.com",
    "DatabaseIdentifier": "shop",
    "DatabaseSecurityGroup": "sg-0123abcd",
    "DatabaseAdminSecret": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:a-1b2c3d",
    "DatabaseAdminSecretKey": "arn:aws:kms:eu-central-1:123456789012:key/1a2b-3c4d",
}


@pytest.fixture
def docker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on the PATH with a fake Docker for x86-64."""
    aws_double.program(tmp_path / "bin", "docker", DOCKER)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    return tmp_path / "bin"


def command(*words: str, **environment: str) -> tuple[int, str]:
    """Run a module with no variables of AWS but these; return exit status and output."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    done = subprocess.run(
        [sys.executable, "-m", *words],
        cwd=ROOT,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    return done.returncode, done.stdout + done.stderr


def deployed(*words: str, **environment: str) -> tuple[int, str]:
    """Run the command without valid credentials; return exit status and output."""
    return command("infra.aws.deploy", *words, **NO_CREDENTIALS | environment)


@pytest.fixture
def account(lambda_settings: LambdaSettings, docker: Path) -> LambdaSettings:
    """An account without any problem."""
    return lambda_settings


def report(*words: str, stack: str = "warm-engine") -> str:
    with pytest.raises(OperatorError) as refused:
        preflight.examine(words, stack)
    return str(refused.value)


# --- On the command line -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (EUROPE, "no AWS credentials. Set AWS_PROFILE"),
        ({}, "no AWS region. Set one"),
        ({"AWS_REGION": "eu-centrall-1"}, "there is no region eu-centrall-1"),
        ({"AWS_PROFILE": "gone", **EUROPE}, "The config profile (gone) could not be found"),
    ],
)
def test_without_credentials_the_hint_says_how_to_set_them(
    docker: Path, environment: dict[str, str], message: str
) -> None:
    code, output = deployed(**environment)
    assert code == 1
    assert "nothing was created: 1 problem\n" in output
    assert message in output


def test_rejected_credentials_are_reported_in_one_line(
    account: LambdaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:

    from infra.aws.account import explain

    error = ClientError({"Error": {"Code": "ExpiredToken", "Message": "It is old."}}, "X")
    assert (
        explain(error) == "AWS refuses the credentials (ExpiredToken). Renew them: `aws sso login`"
    )


def test_all_problems_are_reported_together_with_hints(tmp_path: Path) -> None:
    """No account, no Docker, an unknown parameter, an invalid one, and an exceeded budget."""
    code, output = deployed(
        *("ReservedConcurency=1", "Connection=on", "PoolSize", "InstanceClass=db.huge"),
        PATH=str(tmp_path),
        **EUROPE,
    )
    assert code == 1
    assert "nothing was created: 6 problems" in output
    for message in (
        "no AWS credentials",
        "'ReservedConcurency=1' is not a parameter",
        "Did you mean ReservedConcurrency=…?",
        "Did you mean PoolSize=…?",
        "'PoolSize' is not a parameter",
        "Connection=on is not allowed",
        "One of: pgbouncer, rds-proxy",
        "InstanceClass=db.huge is not allowed",
        "One of: db.t4g.micro, ",
        "Docker does not respond",
    ):
        assert message in output, message
    assert "Traceback" not in output
    code, output = deployed("ReservedConcurrency=6000", PATH=str(tmp_path), **EUROPE)
    assert "the connection budget does not fit" in output
    assert "change ReservedConcurrency=" in output


@pytest.mark.parametrize("stack", ["1shop", "shop_1", "a" * 31, "shop-"])
def test_an_invalid_stack_name_is_a_problem(account: LambdaSettings, stack: str) -> None:
    assert f"the stack's name {stack} cannot be used" in report(stack=stack)


@pytest.mark.parametrize("word", ["Release=2", "FunctionImage=x", "=1", ""])
def test_derived_parameters_cannot_be_set(word: str) -> None:
    chosen, [problem] = parameters.parse([word])
    assert chosen == {}
    assert repr(word) in problem.cause
    assert "ReservedConcurrency" in problem.hint


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"PoolSize": "0"}, "PoolSize=0 is not allowed"),
        ({"PoolSize": "two"}, "PoolSize=two is not allowed"),
        ({"ProxyMaxConnectionsPercent": "101"}, "ProxyMaxConnectionsPercent=101"),
        ({"VpcId": "vpc-0123456789abcdef0"}, "VpcId needs SubnetIds and EndpointSecurityGroup"),
        ({"DatabaseHost": "db", "DatabaseIdentifier": "x"}, "DatabaseHost needs DatabaseSec"),
        ({"InstanceClass": "db.huge"}, "InstanceClass=db.huge is not allowed"),
        ({"AlarmTopic": "alarms"}, "AlarmTopic=alarms is not allowed"),
        ({"AlarmTopic": "arn:aws:sns:eu-west-1:123456789012:alarms"}, "AlarmTopic=arn:aws:sns:eu-"),
        ({"Zones": "eu-central-1a"}, "Zones=eu-central-1a is not allowed"),
        ({"Zones": "eu-central-1a,eu-central-1a"}, "Zones=eu-central-1a,eu-"),
        ({"Zones": "eu-west-1a,eu-west-1b"}, "Zones=eu-west-1a,eu-west-1b is not allowed"),
        (VPC | {"SubnetIds": "subnet-0123456789abcdef0"}, "SubnetIds=subnet-0123456789abcdef0 is "),
        (VPC | {"EndpointSecurityGroup": "default"}, "EndpointSecurityGroup=default is not allow"),
        (DATABASE | {"DatabaseAdminSecret": "admin"}, "DatabaseAdminSecret=admin is not allowed"),
        (DATABASE | {"DatabaseAdminSecretKey": "alias/mine"}, "DatabaseAdminSecretKey=alias/mine "),
        (VPC | {"VpcId": ""}, "SubnetIds and EndpointSecurityGroup cannot be used without VpcId"),
        ({"TaskEndpointSecurityGroup": "sg-0123abcd"}, "cannot be used without VpcId"),
        ({"DatabaseIdentifier": "shop"}, "DatabaseIdentifier cannot be used without DatabaseHost"),
        (DATABASE | {"DatabaseHost": ""}, "DatabaseAdminSecretKey cannot be used without Database"),
        ({"JwtIssuer": "https://x"}, "have no effect with Authorization=IAM"),
        ({"Authorization": "JWT"}, "Authorization=JWT needs JwtIssuer and JwtAudience"),
        ({"Authorization": "JWT", "JwtIssuer": "https://x"}, "needs JwtAudience"),
        ({"Authorization": "JWT", "JwtIssuer": "x", "JwtAudience": "y"}, "not an https:// address"),
    ],
)
def test_an_invalid_parameter_value_is_a_problem(values: dict[str, str], named: str) -> None:
    assert list(parameters.problems(parameters.effective({}, {}), REGION)) == []
    [problem] = parameters.problems(parameters.effective(values, {}), REGION)
    assert named in problem.cause
    assert problem.hint


def test_a_malformed_vpc_and_its_malformed_subnets_are_reported_together() -> None:
    values = {"VpcId": "foo", "SubnetIds": "a,b", "EndpointSecurityGroup": "sg-0123abcd"}
    problems = list(parameters.problems(parameters.effective(values, {}), REGION))
    assert [problem.cause.partition("=")[0] for problem in problems] == ["VpcId", "SubnetIds"]


def test_well_formed_values_are_no_problem() -> None:
    values = DATABASE | {
        "AlarmTopic": "arn:aws:sns:eu-central-1:123456789012:alarms",
        "Zones": "eu-central-1a, eu-central-1c",
    }
    for region in (REGION, ""):  # without credentials the region is not known
        assert list(parameters.problems(parameters.effective(values, {}), region)) == []


def test_spaces_in_lists_are_removed() -> None:
    values = {"Zones": " eu-central-1a,  eu-central-1c ", "JwtAudience": "shop, admin"}
    for chosen, stored in ((values, {}), ({}, values)):
        trimmed = parameters.effective(chosen, stored)
        assert trimmed["Zones"] == "eu-central-1a,eu-central-1c"
        assert trimmed["JwtAudience"] == "shop,admin"


def test_one_off_parameters_are_not_kept_for_the_next_deployment() -> None:
    one_off = ("Canary", "DeletionProtection")
    stored = {**dict.fromkeys(one_off, "false"), "MultiAz": "false", "Release": "1"}
    kept = parameters.effective({}, stored)
    assert {name: kept[name] for name in one_off} == dict.fromkeys(one_off, "true")
    assert kept["MultiAz"] == "false"
    assert "Release" not in kept
    assert parameters.effective({"Canary": "false"}, stored)["Canary"] == "false"


# --- In the account ------------------------------------------------------------------------------


def test_an_account_without_problems_gets_the_defaults(account: LambdaSettings) -> None:
    plan = preflight.examine([], "warm-engine")
    assert plan.notes == []
    assert plan.parameters == parameters.effective({}, {})
    assert plan.budget.AccountConcurrency == 1000


def test_an_explicit_reservation_lambda_would_reject_is_a_problem(account: LambdaSettings) -> None:
    account.limits = {"ConcurrentExecutions": 10, "UnreservedConcurrentExecutions": 10}
    message = report("ReservedConcurrency=5")
    assert (
        "ReservedConcurrency=5, but Lambda allows at most 0 of this region's quota of 10" in message
    )
    assert "ReservedConcurrency=0 (no reservation)" in message
    assert preflight.examine(["ReservedConcurrency=0"], "warm-engine").budget.sandboxes == 10


def test_reservations_of_other_functions_are_respected(account: LambdaSettings) -> None:
    account.limits = {"ConcurrentExecutions": 1000, "UnreservedConcurrentExecutions": 500}
    plan = preflight.examine([], "warm-engine")
    assert plan.parameters["ReservedConcurrency"] == "400"
    assert plan.budget.ReservedConcurrency == 400
    aws_double.create_application("warm-engine", Release="1", ReservedConcurrency="300")
    # Its own 300 are part of the reserved concurrency.
    assert preflight.examine(["ReservedConcurrency=700"], "warm-engine")
    assert "allows at most 700" in report("ReservedConcurrency=701")


def test_a_denied_permission_is_a_note_not_a_problem(account: LambdaSettings) -> None:
    account.denied = True
    [note] = preflight.examine([], "warm-engine").notes
    assert "not permitted" in note
    assert "lambda:GetAccountSettings" in note


@pytest.mark.parametrize(
    ("status", "hint"),
    [
        ("ROLLBACK_COMPLETE", "`make destroy STACK=warm-engine`"),
        ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback --stack-name"),
        ("DELETE_FAILED", "`make destroy STACK=warm-engine`"),
        ("UPDATE_IN_PROGRESS", "Wait until it has finished"),
    ],
)
@pytest.mark.parametrize("name", ["warm-engine", "warm-engine-registry"])
def test_a_stack_that_cannot_be_updated_is_a_problem_with_a_hint(
    account: LambdaSettings, monkeypatch: pytest.MonkeyPatch, name: str, status: str, hint: str
) -> None:
    stack = stacks.Stack(name, status, {"Release": "1", "Prefix": "warm-engine"}, {})
    monkeypatch.setattr(stacks, "find", lambda _, requested: stack if requested == name else None)
    message = report()
    assert f"the stack {name} is {status}" in message
    assert hint in message


def test_a_foreign_stack_is_not_overwritten(account: LambdaSettings) -> None:
    aws_double.create_application("warm-engine", MultiAz="true")
    assert "the stack warm-engine belongs to another application" in report()
    assert preflight.examine([], "other")
    aws_double.create_stack("other-registry", aws_double.NOTHING)
    assert "the stack other-registry belongs to another application" in report(stack="other")


def test_name_collisions_are_found(account: LambdaSettings) -> None:
    secrets = boto3.client("secretsmanager", region_name=REGION)
    secrets.create_secret(Name="warm-engine/pooler-tls", SecretString="x")
    secrets.delete_secret(SecretId="warm-engine/pooler-tls", RecoveryWindowInDays=7)
    [repository, *_] = names.repositories("warm-engine")
    boto3.client("ecr", region_name=REGION).create_repository(repositoryName=repository)
    message = report()
    assert "the secret warm-engine/pooler-tls is scheduled for deletion" in message
    assert "restore-secret" in message
    assert f"the repository {repository} exists, but not the stack" in message


def test_our_own_repository_is_not_a_collision(account: LambdaSettings) -> None:
    aws_double.create_registry("warm-engine-registry", Prefix="warm-engine")
    assert preflight.examine([], "warm-engine")


def test_an_exhausted_vpc_quota_is_a_problem_unless_one_is_given(account: LambdaSettings) -> None:
    ec2 = boto3.client("ec2", region_name=REGION)
    while len(ec2.describe_vpcs()["Vpcs"]) < 5:  # moto's quota, as on AWS
        ec2.create_vpc(CidrBlock="10.0.0.0/16")
    assert "this region has 5 VPCs" in report()
    assert preflight.examine(arguments(network()), "warm-engine")


def network() -> dict[str, str]:
    """Return the parameters of an existing VPC with two subnets in two zones."""
    ec2 = client("ec2")
    vpc = ec2.describe_vpcs()["Vpcs"][0]["VpcId"]
    subnets = ec2.describe_subnets(Filters=[{"Name": "vpc-id", "Values": [vpc]}])["Subnets"]
    groups = ec2.describe_security_groups(Filters=[{"Name": "vpc-id", "Values": [vpc]}])
    return {
        "VpcId": vpc,
        "SubnetIds": ",".join(subnet["SubnetId"] for subnet in subnets[:2]),
        "EndpointSecurityGroup": groups["SecurityGroups"][0]["GroupId"],
    }


def arguments(values: dict[str, str]) -> list[str]:
    return [f"{name}={value}" for name, value in values.items()]


def test_your_own_network_is_checked(account: LambdaSettings) -> None:
    chosen, ec2 = network(), client("ec2")
    assert preflight.examine(arguments(chosen), "warm-engine")
    missing = "vpc-0123456789abcdef0"
    message = report(*arguments(chosen | {"VpcId": missing}))
    assert f"there is no VPC {missing}" in message
    assert f"not in {missing}" in message
    assert "there is no subnet subnet-0123abcd, subnet-4567abcd" in report(
        *arguments(chosen | {"SubnetIds": "subnet-4567abcd,subnet-0123abcd"})
    )
    first = ec2.describe_subnets(SubnetIds=chosen["SubnetIds"].split(","))["Subnets"][0]
    cidr, zone = "172.31.128.0/20", first["AvailabilityZone"]
    second = ec2.create_subnet(VpcId=chosen["VpcId"], CidrBlock=cidr, AvailabilityZone=zone)
    one_zone = f"{first['SubnetId']},{second['Subnet']['SubnetId']}"
    assert f"the subnets are all in {zone}" in report(*arguments(chosen | {"SubnetIds": one_zone}))
    group = {"EndpointSecurityGroup": "sg-0123abcd"}
    assert "there is no security group sg-0123abcd" in report(*arguments(chosen | group))
    other = ec2.create_vpc(CidrBlock="10.0.0.0/16")["Vpc"]["VpcId"]
    outside = ec2.create_security_group(GroupName="x", Description="x", VpcId=other)["GroupId"]
    group = {"EndpointSecurityGroup": outside}
    assert f"{outside} is not in {chosen['VpcId']}" in report(*arguments(chosen | group))
    assert "there is no zone eu-central-1z" in report("Zones=eu-central-1a,eu-central-1z")


def test_your_own_database_is_checked(account: LambdaSettings) -> None:
    chosen = network() | {
        "DatabaseHost": "shop.example",
        "DatabaseIdentifier": "shop",
        "DatabaseSecurityGroup": "",
        "DatabaseAdminSecret": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:no-1b2c3d",
    }
    chosen["DatabaseSecurityGroup"] = chosen["EndpointSecurityGroup"]
    message = report(*arguments(chosen))
    assert f"there is no secret {chosen['DatabaseAdminSecret']}" in message
    assert "there is no RDS instance shop" in message
    client("rds").create_db_instance(
        DBInstanceIdentifier="shop",
        DBInstanceClass="db.m7g.large",
        Engine="postgres",
        AllocatedStorage=20,
        MasterUsername="shop",
        MasterUserPassword="none-of-ours",
    )
    secret = client("secretsmanager").create_secret(Name="shop", SecretString="{}")
    chosen["DatabaseAdminSecret"] = secret["ARN"]
    [instance] = client("rds").describe_db_instances()["DBInstances"]
    endpoint = instance["Endpoint"]["Address"]
    message = report(*arguments(chosen))
    assert "DatabaseHost=shop.example is not the endpoint of shop" in message
    assert f"DatabaseHost={endpoint}" in message
    chosen["DatabaseHost"] = endpoint.upper()
    # The connection budget would be calculated for a smaller class.
    message = report(*arguments(chosen))
    assert "shop is a db.m7g.large" in message
    assert "endpoint" not in message
    plan = preflight.examine([*arguments(chosen), "InstanceClass=db.m7g.large"], "warm-engine")
    assert plan.budget.InstanceClass == "db.m7g.large"


def test_a_key_or_topic_that_does_not_exist_is_a_problem(account: LambdaSettings) -> None:
    key = f"arn:aws:kms:{REGION}:123456789012:key/1a2b3c4d-0000-0000-0000-000000000000"
    topic = f"arn:aws:sns:{REGION}:123456789012:alarms"
    database = {**DATABASE, **network(), "DatabaseAdminSecretKey": key}
    message = report(*arguments(database), f"AlarmTopic={topic}")
    assert f"there is no KMS key {key}" in message
    assert "DatabaseAdminSecretKey=… of the key that encrypts" in message
    assert f"there is no SNS topic {topic}" in message
    assert "AlarmTopic=… of an existing topic" in message
    database["DatabaseAdminSecretKey"] = client("kms").create_key()["KeyMetadata"]["Arn"]
    client("sns").create_topic(Name="alarms")
    message = report(*arguments(database), f"AlarmTopic={topic}")
    assert "KMS" not in message
    assert "SNS" not in message


def test_a_change_that_would_delete_or_move_the_database_is_a_problem(
    account: LambdaSettings,
) -> None:
    chosen = network()
    database = {
        "DatabaseHost": "shop.example",
        "DatabaseIdentifier": "shop",
        "DatabaseSecurityGroup": chosen["EndpointSecurityGroup"],
        "DatabaseAdminSecret": f"arn:aws:secretsmanager:{REGION}:123456789012:secret:no-1b2c3d",
    }
    aws_double.create_application("warm-engine", Release="1", Zones="eu-central-1a,eu-central-1b")
    message = report(*arguments(chosen), *arguments(database))
    assert "DatabaseHost was empty: the change would delete the stack's database" in message
    assert "VpcId was empty" in message
    assert "SubnetIds was empty" in message
    assert "Zones was eu-central-1a,eu-central-1b" in report("Zones=eu-central-1a,eu-central-1c")
    aws_double.create_application("shop", Release="1", **chosen, **database)
    message = report("DatabaseHost=", "VpcId=", stack="shop")
    assert "DatabaseHost was shop.example: the change would create an empty database" in message
    assert f"Keep `VpcId={chosen['VpcId']}`" in message
    # The same subnets in another order and another host are accepted.
    reordered = ",".join(reversed(chosen["SubnetIds"].split(",")))
    message = report(f"SubnetIds={reordered}", "DatabaseHost=new.example", stack="shop")
    assert "Keep " not in message
    assert "nothing was created: 2 problems" in message  # the secret and the instance do not exist


def test_an_error_of_one_check_does_not_hide_the_others(
    account: LambdaSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def throttled(*_: Any) -> Iterator[parameters.Problem]:
        yield parameters.Problem("found before", "correct it")
        raise ClientError({"Error": {"Code": "Throttling", "Message": "Rate exceeded"}}, "List")

    def unreachable(*_: Any) -> Iterator[parameters.Problem]:
        raise EndpointConnectionError(endpoint_url="https://nowhere")
        yield

    monkeypatch.setattr(preflight, "CHECKS", (throttled, unreachable))
    message = report("Connection=on")
    assert "nothing was created: 4 problems" in message
    for message in ("found before", "Rate exceeded", "https://nowhere", "Connection=on"):
        assert message in message


def test_a_docker_that_cannot_build_for_the_architecture_is_a_problem(
    account: LambdaSettings, docker: Path
) -> None:
    message = report("Architecture=arm64")
    assert "this Docker engine is linux/amd64 and cannot build for Architecture=arm64" in message
    assert "binfmt --install arm64" in message
    aws_double.program(docker, "docker", DOCKER_FOR_BOTH)
    assert preflight.examine(["Architecture=arm64"], "warm-engine")
    # It is needed without emulation as well.
    aws_double.program(docker, "docker", DOCKER_WITHOUT_BUILDX)
    assert "Docker has no buildx" in report()


def test_nothing_is_created_when_there_is_a_problem(account: LambdaSettings) -> None:
    from infra.aws import deploy

    with pytest.raises(OperatorError):
        deploy.deploy(["ReservedConcurrency=6000"], "warm-engine")
    session: Any = boto3.Session(region_name=REGION)
    assert session.client("cloudformation").describe_stacks()["Stacks"] == []
    assert session.client("secretsmanager").list_secrets()["SecretList"] == []
