"""Who may do what on AWS, what does not get lost, and what is said when something is wrong."""

import json
import re
from typing import Any

from infra.aws import template_file
from tests.infra.deployment import (
    BOTH,
    DEPLOYED,
    WITH_PGBOUNCER,
    WITH_PROXY,
    Stack,
    only,
)

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
