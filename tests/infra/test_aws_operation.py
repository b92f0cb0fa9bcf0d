"""Permissions, durability, and alarms with instructions."""

import json
import re
from typing import Any

import pytest

from infra.aws import picture, template_file
from infra.local import ROOT
from tests.infra.deployment import (
    BOTH,
    DEPLOYED,
    WITH_PGBOUNCER,
    WITH_PROXY,
    Stack,
    deployment,
    only,
)

# --- Permissions ---------------------------------------------------------------------------------


def statements(stack: Stack) -> list[tuple[str, dict[str, Any]]]:
    """Role, or shared policy → its statements."""
    policies = [
        (path, policy)
        for path, role in stack.of_type("AWS::IAM::Role").items()
        for policy in role.get("Policies", [])
    ]
    for kind in ("AWS::IAM::ManagedPolicy", "AWS::IAM::Policy"):
        policies += stack.of_type(kind).items()
    return [
        (path, statement)
        for path, policy in policies
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Allow"
    ]


def listed(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


@BOTH
def test_no_role_has_unexpected_wildcards(stack: Stack) -> None:
    unnamed = {
        "cloudwatch:DescribeAlarms",
        "ec2:DescribeNetworkInterfaces",
        "ec2:DescribeSubnets",
        "ecr:GetAuthorizationToken",
        "logs:DescribeLogGroups",
        "secretsmanager:GetRandomPassword",
        "xray:PutTelemetryRecords",
        "xray:PutTraceSegments",
    }
    # Lambda's interfaces, a function's aliases, CodeDeploy's deployments of this stack.
    account = "eu-central-1:123456789012"
    open_ended = {
        f"arn:aws:ec2:{account}:*/*",
        "arn:aws:ec2:eu-central-1:*:subnet/*",
        "Function/Function.Arn:*",
        f"arn:aws:codedeploy:{account}:deploymentgroup:warm-engine-Function-*/*",
    }
    for path, statement in statements(stack):
        actions, named = listed(statement["Action"]), listed(statement["Resource"])
        assert not [action for action in actions if "*" in action], path
        if "*" in named:  # actions without a resource
            assert set(actions) <= unnamed, path
        else:
            assert {name for name in named if "*" in name} <= open_ended, path


@BOTH
def test_only_services_of_this_account_may_assume_a_role(stack: Stack) -> None:
    roles = stack.of_type("AWS::IAM::Role")
    assert len(roles) >= 8
    for path, role in roles.items():
        for statement in role["AssumeRolePolicyDocument"]["Statement"]:
            if statement["Principal"]["Service"] == "codedeploy.amazonaws.com":
                continue  # see docs/aws-reference.md
            of_account = {"StringEquals": {"aws:SourceAccount": "123456789012"}}
            assert statement.get("Condition") == of_account, path


@BOTH
def test_a_function_may_only_write_its_own_log(stack: Stack) -> None:
    roles = stack.of_type("AWS::IAM::Role")
    functions = stack.of_type("AWS::Lambda::Function")
    assert len(functions) == 4
    for path, function in functions.items():
        role = roles[function["Role"].removesuffix(".Arn")]
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                if listed(statement["Action"])[0].startswith("logs:"):
                    written = statement["Resource"]
        assert written == f"{function['LoggingConfig']['LogGroup']}.Arn", path


@BOTH
def test_function_code_may_not_create_network_interfaces(stack: Stack) -> None:
    denied = {
        function
        for policy in stack.of_type("AWS::IAM::Policy").values()
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Effect"] == "Deny" and statement["Action"] == "ec2:*"
        for function in listed(statement["Condition"]["ArnEquals"]["lambda:SourceFunctionArn"])
    }
    in_vpc = {
        f"{path}.Arn"
        for path, function in stack.of_type("AWS::Lambda::Function").items()
        if "VpcConfig" in function
    }
    assert denied == in_vpc


def test_an_administrator_secret_under_a_custom_key_can_be_read() -> None:
    """The roles themselves allow it: a separate policy is created while the migration runs."""
    assert not [s for _, s in statements(WITH_PGBOUNCER) if s["Action"] == "kms:Decrypt"]
    allowed = {
        place: statement
        for place, role in deployment(DatabaseAdminSecretKey="arn:key")
        .of_type("AWS::IAM::Role")
        .items()
        for policy in role.get("Policies", [])
        for statement in policy["PolicyDocument"]["Statement"]
        if statement["Action"] == "kms:Decrypt"
    }
    assert set(allowed) == {f"Migration/{role}Role" for role in ("Migrate", "Rotate", "Task")}
    for statement in allowed.values():
        assert statement["Resource"] == "arn:key"
        via = statement["Condition"]["StringEquals"]["kms:ViaService"]
        assert via == "secretsmanager.eu-central-1.amazonaws.com"


def test_the_function_may_read_exactly_one_secret() -> None:
    allowed = [s for path, s in statements(WITH_PGBOUNCER) if path == "Function/FunctionRole"]
    assert [s for s in allowed if s["Resource"] != "Function/Log.Arn"] == [
        {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": "Secrets/App"}
    ]


def test_with_the_proxy_the_function_may_only_connect_as_its_role() -> None:
    proxy = WITH_PROXY.stack("Function").parameters["ProxyResource"]
    allowed = [s for path, s in statements(WITH_PROXY) if path == "Function/FunctionRole"]
    assert [s for s in allowed if s["Resource"] != "Function/Log.Arn"] == [
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


def test_only_the_enhanced_monitoring_managed_policy_is_attached() -> None:
    attached = {
        arn.rsplit("/", 1)[1]
        for role in WITH_PGBOUNCER.of_type("AWS::IAM::Role").values()
        for arn in role.get("ManagedPolicyArns", [])
    }
    assert attached == {"InVpc", "AmazonRDSEnhancedMonitoringRole"}


def test_no_environment_contains_a_secret() -> None:
    containers = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"]
    for container in containers:
        plain = {variable["Name"] for variable in container["Environment"]}
        assert not [name for name in plain if re.search("PASS|KEY|SECRET", name)]
        for secret in container.get("Secrets", []):
            path, field = secret["ValueFrom"].removesuffix("::").rsplit(":", 1)
            assert path in ("Secrets/Lookup", DEPLOYED["PoolerTlsSecret"])
            assert field in ("password", "certificate", "key")
    assert len(containers[0]["Secrets"]) == 3
    database = WITH_PGBOUNCER.resources["Database/Instance"]["Properties"]
    assert database["ManageMasterUserPassword"] is True
    assert "MasterUserPassword" not in database


# --- Durability ----------------------------------------------------------------------------------


def test_the_database_is_encrypted_requires_tls_and_outlives_its_stack() -> None:
    resource = WITH_PGBOUNCER.resources["Database/Instance"]
    instance = resource["Properties"]
    assert (resource["DeletionPolicy"], instance["DeletionProtection"]) == ("Snapshot", "true")
    assert instance["StorageEncrypted"] is True
    assert instance["BackupRetentionPeriod"] >= 7
    assert instance["EngineVersion"].split(".")[0] == "17"
    parameters = WITH_PGBOUNCER.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert parameters["rds.force_ssl"] == "1"
    assert parameters["log_connections"] == "1"


def test_a_half_created_database_can_be_rolled_back() -> None:
    """`make deploy` protects it once it exists: test_aws_deploy.py."""
    instance = deployment(DeletionProtection="false").resources["Database/Instance"]["Properties"]
    assert instance["DeletionProtection"] == "false"


def test_no_minor_database_version_is_pinned() -> None:
    instance = WITH_PGBOUNCER.resources["Database/Instance"]["Properties"]
    assert instance["EngineVersion"] == "17"
    assert instance["AutoMinorVersionUpgrade"] is True


@pytest.mark.parametrize("storage", [20, 100, 6500])
def test_storage_autoscaling_works_for_any_size(storage: int) -> None:
    instance = deployment(Storage=storage).resources["Database/Instance"]["Properties"]
    assert storage * 1.1 <= int(instance["MaxAllocatedStorage"]) <= 65536  # RDS's own limits


def test_database_logs_expire_and_contain_no_customer_data() -> None:
    instance = WITH_PGBOUNCER.resources["Database/Instance"]
    identifier = instance["Properties"]["DBInstanceIdentifier"]
    exported = instance["Properties"]["EnableCloudwatchLogsExports"]
    groups = {
        group["LogGroupName"]: group["RetentionInDays"]
        for path, group in WITH_PGBOUNCER.of_type("AWS::Logs::LogGroup").items()
        # RDS would create missing log groups itself, without expiry.
        if path.removeprefix("Database/") in instance["DependsOn"]
    }
    assert groups == {f"/aws/rds/instance/{identifier}/{log}": 30 for log in exported}
    parameters = WITH_PGBOUNCER.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert parameters["log_parameter_max_length"] == "0"


def test_every_log_group_expires() -> None:
    for path, group in WITH_PGBOUNCER.of_type("AWS::Logs::LogGroup").items():
        assert group["RetentionInDays"] <= 30, path


#: Properties with a name that must be unique in an account or a VPC.
CHOSEN = {
    "AWS::ECR::Repository": "RepositoryName",
    "AWS::Logs::LogGroup": "LogGroupName",
    "AWS::RDS::DBInstance": "DBInstanceIdentifier",
    "AWS::RDS::DBProxy": "DBProxyName",
    "AWS::Route53::HostedZone": "Name",
    "AWS::Route53::RecordSet": "Name",
}


def names_chosen(prefix: str) -> set[str]:
    stacks = (
        deployment(Prefix=prefix),
        deployment(Prefix=prefix, Connection="rds-proxy"),
        Stack("registry", Prefix=prefix),
    )
    return {
        properties[name]
        for stack in stacks
        for kind, name in CHOSEN.items()
        for path, properties in stack.of_type(kind).items()
        # CloudFormation generates the others, or a nested stack's name makes them unique.
        if name in properties and path != "Function/AccessLog"
    }


def test_two_stacks_in_one_account_share_no_names() -> None:
    one, other = names_chosen("blue"), names_chosen("green")
    assert len(one) == 9
    assert not one & other


def test_proxy_alarms_use_the_name_rds_stores() -> None:
    """RDS stores names in lower case, and its metrics use the stored names."""
    name = WITH_PROXY.resources["Proxy/Proxy"]["Properties"]["DBProxyName"]
    assert name == name.lower()
    pattern = template_file.read("template")["Parameters"]["Prefix"]["AllowedPattern"]
    assert re.fullmatch(pattern, "warm-engine")
    assert not re.fullmatch(pattern, "Warm-Engine")


@pytest.mark.parametrize("repository", ["Function", "Migrate", "Pooler"])
def test_repositories_keep_only_recent_images(repository: str) -> None:
    properties = Stack("registry", Prefix="warm-engine").resources[repository]["Properties"]
    [rule] = json.loads(properties["LifecyclePolicy"]["LifecyclePolicyText"])["rules"]
    selection = rule["selection"]
    assert (selection["countType"], selection["tagStatus"]) == ("imageCountMoreThan", "any")
    assert 5 <= selection["countNumber"] <= 50


def test_pgbouncer_runs_in_two_zones_throughout_a_deployment() -> None:
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
    assert all(definition["ReadonlyRootFilesystem"] for definition in task["ContainerDefinitions"])


def test_a_database_failover_stops_no_pgbouncer() -> None:
    container = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"][0]
    assert "SHOW VERSION" in container["HealthCheck"]["Command"][1]
    assert "DB_NAME" not in container["HealthCheck"]["Command"][1]
    assert WITH_PGBOUNCER.resources["Pooler/Targets"]["Properties"]["HealthCheckProtocol"] == "TCP"


def test_the_metrics_sidecar_restarts_by_itself() -> None:
    containers = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"]
    [metrics] = [container for container in containers if not container["Essential"]]
    assert metrics["RestartPolicy"]["Enabled"] is True


def test_no_paid_metric_lacks_an_alarm() -> None:
    for cluster in WITH_PGBOUNCER.of_type("AWS::ECS::Cluster").values():
        assert cluster["ClusterSettings"] == [{"Name": "containerInsights", "Value": "disabled"}]
    stage = only(WITH_PGBOUNCER.of_type("AWS::ApiGatewayV2::Stage"))
    assert stage["DefaultRouteSettings"]["DetailedMetricsEnabled"] is False


# --- Alarms and documentation --------------------------------------------------------------------


def test_a_pgbouncer_is_lost_when_no_balancer_node_reaches_it() -> None:
    lost = WITH_PGBOUNCER.resources["Alarms/PoolerLost"]["Properties"]
    assert (lost["MetricName"], lost["Statistic"]) == ("HealthyHostCount", "Maximum")


def test_busy_pgbouncers_and_exhausted_cpu_credits_raise_alarms() -> None:
    busy = WITH_PGBOUNCER.resources["Alarms/PoolerCpu"]["Properties"]
    dimensions = {dimension["Name"]: dimension["Value"] for dimension in busy["Dimensions"]}
    assert dimensions == {"ClusterName": "Pooler/Cluster", "ServiceName": "Pooler/Service.Name"}
    credits = WITH_PGBOUNCER.resources["Alarms/Credits"]["Properties"]
    assert credits["MetricName"] == "CPUCreditBalance"
    assert credits["TreatMissingData"] == "notBreaching"  # other classes have none
    # A new db.t4g.micro starts without credits and earns 12 an hour: it must not raise the alarm.
    assert credits["Threshold"] <= 12 / 2
    assert credits["Period"] * credits["EvaluationPeriods"] >= 2 * 3600


def test_the_alarm_of_a_failed_rotation_names_both_passwords() -> None:
    text = WITH_PGBOUNCER.resources["Alarms/Rotation"]["Properties"]["AlarmDescription"]
    assert "application" in text
    assert "owner" in text


def test_the_outputs_contain_the_names_in_the_runbooks_commands() -> None:
    named = {
        "Dashboard": "Alarms/Dashboard",
        "Function": "Function/Function",
        "FunctionLog": "Function/Log",
        "AccessLog": "Function/AccessLog",
        "MigrateFunction": "Migration/Migrate",
        "RotateFunction": "Migration/Rotate",
        "MigrationLog": "Migration/Log",
        "DatabaseIdentifier": "Database/Instance",
        "DatabaseLog": "/aws/rds/instance/Database/Instance/postgresql",
        "PoolerCluster": "Pooler/Cluster",
        "PoolerService": "Pooler/Service.Name",
        "PoolerLog": "Pooler/Log",
    }
    assert {name: WITH_PGBOUNCER.output(name) for name in named} == named
    outputs = WITH_PROXY.template["Outputs"]
    conditional = {name for name in named if not WITH_PROXY.exists(outputs[name])}
    assert conditional == {"PoolerCluster", "PoolerService", "PoolerLog"}


@BOTH
def test_every_alarm_is_described_in_the_runbook(stack: Stack) -> None:
    runbook = (template_file.FOLDER / "RUNBOOK.md").read_text()
    for path, alarm in stack.of_type("AWS::CloudWatch::Alarm").items():
        name = path.rsplit("/", 1)[1]
        meaning, _, rest = alarm["AlarmDescription"].partition(" Do: ")
        assert len(meaning) > 20, name
        assert rest.endswith(f"RUNBOOK.md, {name}"), name
        assert f"\n### {name}\n" in runbook, name
        assert len(alarm["AlarmDescription"]) <= 1024


def test_every_lint_suppression_is_explained() -> None:
    """checkov's within its metadata, cfn-lint's beside it."""
    for path in sorted(template_file.FOLDER.glob("*.yaml")):
        for name, resource in template_file.read(path.stem)["Resources"].items():
            for skip in resource.get("Metadata", {}).get("checkov", {}).get("skip", []):
                assert len(skip["comment"]) > 15, (path.name, name)
        for line in path.read_text().splitlines():
            if "ignore_checks" in line:
                assert len(line.partition(" # ")[2]) > 15, path.name


@BOTH
def test_the_dashboard_is_valid_json_and_shows_the_budget(stack: Stack) -> None:
    body = json.loads(only(stack.of_type("AWS::CloudWatch::Dashboard"))["DashboardBody"])
    budget = {"label": "budget", "value": int(stack.parameters["BudgetedConnections"])}
    drawn = [widget["properties"].get("annotations") for widget in body["widgets"]]
    assert drawn.count({"horizontal": [budget]}) == 1


def test_every_security_group_rule_is_an_arrow_in_the_diagram() -> None:
    drawn = set(re.findall(r"(\w+) -\.?->\|(\d+)\| (\w+)", picture.picture()))
    names = {"EndpointGroup": "Endpoints", "TaskEndpointGroup": "TaskEndpoints"}
    rules = set()
    for stack in (WITH_PGBOUNCER, WITH_PROXY):
        for rule in stack.of_type("AWS::EC2::SecurityGroupIngress").values():
            source, target = (
                rule[key].rpartition("/")[2] for key in ("SourceSecurityGroupId", "GroupId")
            )
            rules.add((source, str(rule["FromPort"]), names.get(target, target)))
    assert drawn == rules


def test_the_cost_table_counts_every_alarm_and_adds_up() -> None:
    """Fixed prices only; the prices of alarms and metrics are on CloudWatch's pricing page."""
    text = (ROOT / "docs/aws-reference.md").read_text()
    [fixed] = re.findall(r"^\| five secrets, .* \| ([\d.]+) \|$", text, re.M)
    # Two more: for TLS, and RDS's own.
    secrets = len(WITH_PGBOUNCER.of_type("AWS::SecretsManager::Secret")) + 2
    alarms = len(WITH_PGBOUNCER.of_type("AWS::CloudWatch::Alarm"))
    metrics = 3  # of pool_metrics.sh
    assert secrets * 0.40 + 0.50 + alarms * 0.10 + metrics * 0.30 == pytest.approx(float(fixed))
    parts = {
        "RDS `db.t4g.micro` / `small` / `medium`": 2 * 23.36,
        "its disk, gp3": 2 * 2.30,
        "PgBouncer, ": 18.02,
        "its load balancer": 16.43,
        "four endpoints": 58.40,
    }
    for name, price in parts.items():
        [row] = [line for line in text.splitlines() if line.startswith(f"| {name}")]
        assert any(f"{price / times:.2f}" in row for times in (1, 2)), row
    [total] = re.findall(r"\*\*the defaults\*\* \| [^|]+ \| \*\*([\d.]+)\*\*", text)
    assert sum(parts.values()) + float(fixed) == pytest.approx(float(total))
    endpoints = WITH_PGBOUNCER.of_type("AWS::EC2::VPCEndpoint").values()
    assert (
        len([endpoint for endpoint in endpoints if endpoint["VpcEndpointType"] == "Interface"]) == 4
    )
