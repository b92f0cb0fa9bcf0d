"""What CloudFormation would make: who reaches whom, what the handler is told, what waits for
what."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

import handler.main
from handler.settings import Settings, load
from infra.aws import template_file
from infra.database import roles
from infra.local import ROOT
from tests.infra.deployment import DEPLOYED, Stack, deployment

WITH_PGBOUNCER = deployment()
WITH_PROXY = deployment(Connection="rds-proxy", PoolerImage="", PoolerTlsSecret="")
BOTH = pytest.mark.parametrize(
    "stack", [WITH_PGBOUNCER, WITH_PROXY], ids=["pgbouncer", "rds-proxy"]
)
INI = dict(re.findall(r"^(\w+) = (\w+)$", (ROOT / "pgbouncer/pgbouncer.ini").read_text(), re.M))


def only(found: dict[str, Any]) -> Any:
    assert len(found) == 1, list(found)
    return next(iter(found.values()))


def environment(stack: Stack) -> dict[str, str]:
    variables = stack.resources["Function/Function"]["Properties"]["Environment"]["Variables"]
    return {name: str(value) for name, value in variables.items()}


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


# --- What the handler is told --------------------------------------------------------------------

VARIABLES = {
    "DB_PASS" if name == "password" else f"DB_{name.upper()}" for name in Settings.model_fields
}
#: Left as they are: the defaults are right on AWS, too. The password comes by DB_AUTH.
DEFAULTS = {
    "DB_PASS",
    "DB_POOL_TIMEOUT",
    "DB_POOL_RECYCLE",
    "DB_MAX_IDLE",
    "DB_CONNECT_TIMEOUT",
    "DB_COMMAND_TIMEOUT",
    "DB_SQL_TOKEN",
}


@BOTH
def test_the_function_s_variables_are_the_handler_s(stack: Stack) -> None:
    told = set(environment(stack))
    if stack is WITH_PROXY:
        told.add("DB_SECRET_ARN")  # which `iam` has no use for
    assert told == VARIABLES - DEFAULTS


@BOTH
def test_the_handler_starts_with_the_function_s_environment(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ca = tmp_path / "ca.pem"
    ca.touch()
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app"
    made = {"DB_SSLROOTCERT": str(ca), "DB_SECRET_ARN": arn}
    for name, value in environment(stack).items():
        monkeypatch.setenv(name, made.get(name, value))
    settings = load()
    assert settings.effective_sslmode == "verify-full"
    assert (settings.port, settings.name, settings.user) == (5432, "storefront", roles.APP)
    assert (settings.pool_size, settings.max_overflow) == (1, 0)


def test_each_way_in_has_its_credential_and_its_ca() -> None:
    pgbouncer, proxy = environment(WITH_PGBOUNCER), environment(WITH_PROXY)
    assert (pgbouncer["DB_AUTH"], pgbouncer["DB_SECRET_ARN"]) == ("secret", "Secrets/App")
    assert (proxy["DB_AUTH"], proxy["DB_HOST"]) == ("iam", "Proxy/Proxy.Endpoint")
    assert pgbouncer["DB_HOST"] == "Pooler/Name"
    assert pgbouncer["DB_SSLROOTCERT"].endswith("/pooler.pem")
    assert proxy["DB_SSLROOTCERT"].endswith("/proxy.pem")


def test_a_copy_of_a_snapshot_connects_before_its_first_request() -> None:
    stack = deployment(SnapStart="PublishedVersions")
    assert environment(stack)["DB_PREWARM"] == "on"
    function = stack.resources["Function/Function"]["Properties"]
    assert function["SnapStart"] == {"ApplyOn": "PublishedVersions"}


@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_all_that_runs_is_of_one_architecture(architecture: str) -> None:
    stack = deployment(Architecture=architecture)
    for function in stack.of_type("AWS::Lambda::Function").values():
        assert function["Architectures"] == [architecture]
        assert function["PackageType"] == "Image"
    task = stack.resources["Pooler/Task"]["Properties"]
    assert task["RuntimePlatform"]["CpuArchitecture"].lower() == architecture


def test_each_part_runs_its_own_image() -> None:
    there = WITH_PGBOUNCER.resources
    images = {
        place: there[place]["Properties"]["Code"]["ImageUri"]
        for place in ("Function/Function", "Migration/Migrate", "Migration/Rotate")
    }
    assert images == {
        "Function/Function": DEPLOYED["FunctionImage"],
        "Migration/Migrate": DEPLOYED["MigrateImage"],
        "Migration/Rotate": DEPLOYED["MigrateImage"],
    }
    containers = there["Pooler/Task"]["Properties"]["ContainerDefinitions"]
    assert {each["Image"] for each in containers} == {DEPLOYED["PoolerImage"]}


@pytest.mark.parametrize("place", ["Migration/Migrate", "Migration/Rotate"])
def test_what_the_migrations_are_told_to_run_is_there(place: str) -> None:
    command = WITH_PGBOUNCER.resources[place]["Properties"]["ImageConfig"]["Command"]
    module, _, function = command[0].rpartition(".")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"\ndef {function}(event: " in source
    variables = WITH_PGBOUNCER.resources[place]["Properties"]["Environment"]["Variables"]
    migration = (ROOT / "infra/aws/migration.py").read_text()
    asked = set(re.findall(r'os\.environ\["(\w+)"\]', migration))
    assert asked == {name for name in variables if not name.startswith("DB_")}
    assert {name for name in variables if name.startswith("DB_")} <= VARIABLES


# --- What waits for what, and for how long ------------------------------------------------------


def test_each_time_out_lets_the_one_below_it_speak_first() -> None:
    function = WITH_PGBOUNCER.resources["Function/Function"]["Properties"]
    body = WITH_PGBOUNCER.resources["Function/Api"]["Properties"]["Body"]
    integration = body["paths"]["/$default"]["x-amazon-apigateway-any-method"]
    api = integration["x-amazon-apigateway-integration"]["timeoutInMillis"] / 1000
    statement = int(roles.APP_SETTINGS["statement_timeout"].removesuffix("s"))
    queue = int(INI["query_wait_timeout"])
    command = Settings.model_fields["command_timeout"].default
    margin = handler.main.MARGIN
    assert statement < statement + queue < command < function["Timeout"] - margin
    assert function["Timeout"] < api < 30  # the most that an HTTP API allows


def test_what_is_idle_is_let_go_by_the_handler_first() -> None:
    handler_s = Settings.model_fields["max_idle"].default
    pgbouncer = int(INI["client_idle_timeout"])
    listener = WITH_PGBOUNCER.resources["Pooler/Listener"]["Properties"]["ListenerAttributes"]
    assert [each["Key"] for each in listener] == ["tcp.idle_timeout.seconds"]
    assert handler_s < pgbouncer < int(listener[0]["Value"])
    proxy = WITH_PROXY.resources["Proxy/Proxy"]["Properties"]
    assert handler_s < proxy["IdleClientTimeout"]
    parameters = WITH_PGBOUNCER.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert int(INI["server_idle_timeout"]) * 1000 < int(parameters["idle_session_timeout"])


def test_nobody_waits_longer_for_a_connection_of_the_proxy_than_of_pgbouncer() -> None:
    targets = WITH_PROXY.resources["Proxy/Targets"]["Properties"]
    pool = targets["ConnectionPoolConfigurationInfo"]
    assert pool["ConnectionBorrowTimeout"] == int(INI["query_wait_timeout"])


def test_a_pgbouncer_that_leaves_has_time_for_what_runs() -> None:
    container = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"][0]
    assert int(INI["query_timeout"]) < container["StopTimeout"] <= 120


@BOTH
def test_roles_and_tables_come_before_the_pooler_and_the_new_version(stack: Stack) -> None:
    there = stack.template["Resources"]
    for name in ("Pooler", "Proxy", "Function"):
        assert there[name]["DependsOn"] == "Migration", name
    migrated = stack.resources["Migration/Migrated"]["Properties"]
    assert migrated["Image"] == DEPLOYED["MigrateImage"]  # so that a new one migrates anew
    migrate = stack.resources["Migration/Migrate"]["Properties"]
    assert migrate["Timeout"] < migrated["ServiceTimeout"]


def test_a_new_release_is_a_new_version() -> None:
    versions = {
        next(iter(deployment(Release=release).of_type("AWS::Lambda::Version")))
        for release in ("1", "2")
    }
    assert len(versions) == 2


def test_a_new_version_takes_over_slowly_and_goes_back_at_an_alarm() -> None:
    group = only(WITH_PGBOUNCER.of_type("AWS::CodeDeploy::DeploymentGroup"))
    assert "Canary10Percent5Minutes" in str(group["DeploymentConfigName"])
    assert {each["Name"] for each in group["AlarmConfiguration"]["Alarms"]} == {
        "Function/Errors",
        "Function/Slow",
    }
    assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
    for place in ("Function/Errors", "Function/Slow"):
        watched = {
            each["Name"]: each["Value"]
            for each in WITH_PGBOUNCER.resources[place]["Properties"]["Dimensions"]
        }
        assert watched["Resource"] == "Function/Function:live"


def test_the_api_calls_the_alias_and_not_the_newest_code() -> None:
    body = WITH_PGBOUNCER.resources["Function/Api"]["Properties"]["Body"]
    integration = body["paths"]["/$default"]["x-amazon-apigateway-any-method"]
    assert "FunctionAliaslive" in integration["x-amazon-apigateway-integration"]["uri"]


# --- Who may do what -----------------------------------------------------------------------------


def statements(stack: Stack) -> list[tuple[str, dict[str, Any]]]:
    return [
        (place, statement)
        for place, role in stack.of_type("AWS::IAM::Role").items()
        for policy in role.get("Policies", [])
        for statement in policy["PolicyDocument"]["Statement"]
    ]


@BOTH
def test_no_role_may_do_what_it_does_not_name(stack: Stack) -> None:
    unnamed = {"ecr:GetAuthorizationToken", "secretsmanager:GetRandomPassword"}
    for place, statement in statements(stack):
        actions, named = statement["Action"], statement["Resource"]
        actions = [actions] if isinstance(actions, str) else actions
        named = [named] if isinstance(named, str) else named
        assert not [each for each in actions if "*" in each], place
        if "*" in named:  # about nothing that could be named
            assert set(actions) <= unnamed, place
        else:
            assert not [each for each in named if "*" in each], place


def test_the_function_may_read_one_secret_and_no_more() -> None:
    allowed = [s for place, s in statements(WITH_PGBOUNCER) if place == "Function/FunctionRole"]
    assert allowed == [
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "Secrets/App"}
    ]


def test_through_the_proxy_the_function_may_log_in_as_its_role_and_no_more() -> None:
    proxy = WITH_PROXY.stack("Function").parameters["ProxyResource"]
    allowed = [s for place, s in statements(WITH_PROXY) if place == "Function/FunctionRole"]
    assert allowed == [
        {
            "Effect": "Allow",
            "Action": "rds-db:connect",
            "Resource": f"arn:aws:rds-db:eu-central-1:123456789012:dbuser:{proxy}/appuser",
        }
    ]
    assert "DBProxyArn" in proxy
    auth = WITH_PROXY.resources["Proxy/Proxy"]["Properties"]
    assert auth["RequireTLS"] is True
    assert auth["Auth"][0]["IAMAuth"] == "REQUIRED"


def test_the_managed_policies_are_those_that_name_no_resource_by_their_nature() -> None:
    """Logs, traces and network interfaces: SAM's own, for a function in a VPC with tracing."""
    attached = {
        arn.rsplit("/", 1)[1]
        for role in WITH_PGBOUNCER.of_type("AWS::IAM::Role").values()
        for arn in role.get("ManagedPolicyArns", [])
    }
    assert attached == {
        "AWSLambdaBasicExecutionRole",
        "AWSLambdaVPCAccessExecutionRole",
        "AWSXrayWriteOnlyAccess",
        "AWSCodeDeployRoleForLambda",
        "AmazonRDSEnhancedMonitoringRole",
    }


def test_no_secret_stands_in_an_environment() -> None:
    containers = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"]
    for container in containers:
        plain = {each["Name"] for each in container["Environment"]}
        assert not [name for name in plain if re.search("PASS|KEY|SECRET", name)]
        for each in container.get("Secrets", []):
            place, field = each["ValueFrom"].removesuffix("::").rsplit(":", 1)
            assert place in ("Secrets/Lookup", DEPLOYED["PoolerTlsSecret"])
            assert field in ("password", "certificate", "key")
    assert len(containers[0]["Secrets"]) == 3
    database = WITH_PGBOUNCER.resources["Database/Instance"]["Properties"]
    assert database["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database


# --- What does not get lost ----------------------------------------------------------------------


def test_the_database_is_encrypted_speaks_tls_alone_and_outlives_its_stack() -> None:
    resource = WITH_PGBOUNCER.resources["Database/Instance"]
    instance = resource["Properties"]
    assert (resource["DeletionPolicy"], instance["DeletionProtection"]) == ("Snapshot", True)
    assert instance["StorageEncrypted"] is True
    assert instance["BackupRetentionPeriod"] >= 7
    assert instance["EngineVersion"].split(".")[0] == "17"
    parameters = WITH_PGBOUNCER.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert parameters["rds.force_ssl"] == "1"
    assert parameters["log_connections"] == "1"


def test_pgbouncers_stand_in_two_zones_and_a_deploy_takes_none_away() -> None:
    service = WITH_PGBOUNCER.resources["Pooler/Service"]["Properties"]
    assert int(service["DesiredCount"]) >= 2
    subnets = service["NetworkConfiguration"]["AwsvpcConfiguration"]["Subnets"]
    zones = {
        WITH_PGBOUNCER.resources[subnet]["Properties"]["AvailabilityZone"] for subnet in subnets
    }
    assert len(zones) == 2
    assert service["DeploymentConfiguration"]["MinimumHealthyPercent"] == 100
    task = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]
    assert "TaskRoleArn" not in task
    assert all(each["ReadonlyRootFilesystem"] for each in task["ContainerDefinitions"])


def test_a_failover_of_the_database_ends_no_pgbouncer() -> None:
    container = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"][0]
    assert "SHOW VERSION" in container["HealthCheck"]["Command"][1]
    assert "DB_NAME" not in container["HealthCheck"]["Command"][1]
    targets = WITH_PGBOUNCER.resources["Pooler/Targets"]["Properties"]
    assert targets["HealthCheckProtocol"] == "TCP"


# --- What is said --------------------------------------------------------------------------------


@BOTH
def test_every_alarm_says_what_to_do_and_stands_in_the_runbook(stack: Stack) -> None:
    runbook = (template_file.FOLDER / "RUNBOOK.md").read_text()
    for place, alarm in stack.of_type("AWS::CloudWatch::Alarm").items():
        name = place.rsplit("/", 1)[1]
        meaning, _, rest = alarm["AlarmDescription"].partition(" Do: ")
        assert len(meaning) > 20, name
        assert rest.endswith(f"RUNBOOK.md, {name}"), name
        assert f"\n### {name}\n" in runbook, name
        assert len(alarm["AlarmDescription"]) <= 1024


def test_every_suppression_is_explained_where_it_stands() -> None:
    for path in sorted(template_file.FOLDER.glob("*.yaml")):
        for name, resource in template_file.read(path.stem)["Resources"].items():
            for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", []):
                assert len(skip["comment"]) > 15, (path.name, name)
        assert "ignore_checks" not in path.read_text(), path.name


@BOTH
def test_the_dashboard_is_json_and_shows_the_budget(stack: Stack) -> None:
    body = json.loads(only(stack.of_type("AWS::CloudWatch::Dashboard"))["DashboardBody"])
    assert len(body["widgets"]) == 6
    assert str(stack.parameters["BudgetedConnections"]) in json.dumps(body["widgets"][0])
