"""The function's configuration, the order of timeouts and dependencies, and the rollout."""

import re
from pathlib import Path

import pytest

from handler.warm import request_policy
from handler.warm.settings import Settings, load_settings
from infra.database import roles
from infra.local import ROOT
from tests.infra.deployment import (
    BOTH,
    DEPLOYED,
    INI,
    WITH_PGBOUNCER,
    WITH_PROXY,
    Stack,
    deployment,
    environment,
    only,
)

# --- The function's configuration ----------------------------------------------------------------

VARIABLES = {
    str(field.validation_alias or f"DB_{name.upper()}")
    for name, field in Settings.model_fields.items()
}
#: The defaults are right on AWS too. The password is obtained through DB_AUTH.
DEFAULTS = {
    "DB_PASS",
    "DB_POOL_TIMEOUT",
    "DB_POOL_RECYCLE",
    "DB_MAX_IDLE",
    "DB_CONNECT_TIMEOUT",
    "DB_COMMAND_TIMEOUT",
    "DB_SQL_TOKEN",
    "API_BASE_PATH",
    "AWS_EMF_NAMESPACE",
}


@BOTH
def test_the_function_variables_are_known_to_the_handler(stack: Stack) -> None:
    variables_set = set(environment(stack))
    if stack is WITH_PROXY:
        variables_set.add("DB_SECRET_ARN")  # `iam` does not use it
    assert variables_set == VARIABLES - DEFAULTS


@BOTH
def test_the_handler_starts_with_the_function_environment(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    ca = tmp_path / "ca.pem"
    ca.touch()
    arn = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:app"
    replaced = {"DB_SSLROOTCERT": str(ca), "DB_SECRET_ARN": arn, "DB_HOST": "pooler.internal"}
    for name, value in environment(stack).items():
        monkeypatch.setenv(name, replaced.get(name, value))
    settings = load_settings()
    assert settings.effective_sslmode == "verify-full"
    assert (settings.port, settings.name, settings.user) == (5432, "storefront", roles.APP)
    assert (settings.pool_size, settings.max_overflow) == (1, 0)


def test_each_connection_type_has_its_credential_and_ca() -> None:
    pgbouncer, proxy = environment(WITH_PGBOUNCER), environment(WITH_PROXY)
    assert (pgbouncer["DB_AUTH"], pgbouncer["DB_SECRET_ARN"]) == ("secret", "Secrets/App")
    assert (proxy["DB_AUTH"], proxy["DB_HOST"]) == ("iam", "Proxy/Proxy.Endpoint")
    assert pgbouncer["DB_HOST"] == "Pooler/Name"
    assert pgbouncer["DB_SSLROOTCERT"].endswith("/pooler.pem")
    assert proxy["DB_SSLROOTCERT"].endswith("/proxy.pem")


@BOTH
def test_a_function_with_an_image_has_no_snapstart(stack: Stack) -> None:
    """Lambda SnapStart does not support container images."""
    assert environment(stack)["DB_PREWARM"] == "on"
    for place, function in stack.of_type("AWS::Lambda::Function").items():
        assert function["PackageType"] == "Image", place
        assert "SnapStart" not in function, place


@pytest.mark.parametrize("architecture", ["x86_64", "arm64"])
def test_everything_runs_on_one_architecture(architecture: str) -> None:
    stack = deployment(Architecture=architecture)
    for function in stack.of_type("AWS::Lambda::Function").values():
        assert function["Architectures"] == [architecture]
        assert function["PackageType"] == "Image"
    for task in stack.of_type("AWS::ECS::TaskDefinition").values():
        assert task["RuntimePlatform"]["CpuArchitecture"].lower() == architecture


def test_each_component_runs_its_own_image() -> None:
    resources = WITH_PGBOUNCER.resources
    images = {
        path: resources[path]["Properties"]["Code"]["ImageUri"]
        for path in (
            "Function/Function",
            "Function/BeforeTraffic",
            "Migration/Migrate",
            "Migration/Rotate",
        )
    }
    assert images == {
        "Function/Function": DEPLOYED["FunctionImage"],
        "Function/BeforeTraffic": DEPLOYED["MigrateImage"],
        "Migration/Migrate": DEPLOYED["MigrateImage"],
        "Migration/Rotate": DEPLOYED["MigrateImage"],
    }
    containers = resources["Pooler/Task"]["Properties"]["ContainerDefinitions"]
    assert {container["Image"] for container in containers} == {DEPLOYED["PoolerImage"]}
    [administer] = resources["Migration/Task"]["Properties"]["ContainerDefinitions"]
    assert administer["Image"] == DEPLOYED["MigrateImage"]
    copied = (ROOT / "infra/aws/Dockerfile").read_text()
    for module in ("migration", "rotation", "traffic"):
        assert f" {module}.py " in copied


@pytest.mark.parametrize("path", ["Migration/Migrate", "Migration/Rotate"])
def test_the_migration_command_exists(path: str) -> None:
    command = WITH_PGBOUNCER.resources[path]["Properties"]["ImageConfig"]["Command"]
    module, _, function = command[0].rpartition(".")
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    assert f"\ndef {function}(event: " in source
    variables = WITH_PGBOUNCER.resources[path]["Properties"]["Environment"]["Variables"]
    migration = (ROOT / "infra/aws/migration.py").read_text()
    variables_read = set(re.findall(r'os\.environ\["(\w+)"\]', migration))
    assert variables_read == {name for name in variables if not name.startswith("DB_")}
    assert {name for name in variables if name.startswith("DB_")} <= VARIABLES


# --- Timeouts and dependencies -------------------------------------------------------------------


def test_each_timeout_exceeds_the_one_below_it() -> None:
    function = WITH_PGBOUNCER.resources["Function/Function"]["Properties"]
    api = only(WITH_PGBOUNCER.of_type("AWS::ApiGatewayV2::Integration"))["TimeoutInMillis"] / 1000
    statement = int(roles.APP_SETTINGS["statement_timeout"].removesuffix("s"))
    queue = int(INI["query_wait_timeout"])
    command = Settings.model_fields["command_timeout"].default
    margin = request_policy.MARGIN
    assert statement < statement + queue < command < function["Timeout"] - margin
    assert function["Timeout"] < api < 30  # the maximum of an HTTP API


def test_the_handler_closes_idle_connections_first() -> None:
    handler_s = Settings.model_fields["max_idle"].default
    pgbouncer = int(INI["client_idle_timeout"])
    listener = WITH_PGBOUNCER.resources["Pooler/Listener"]["Properties"]["ListenerAttributes"]
    assert [attribute["Key"] for attribute in listener] == ["tcp.idle_timeout.seconds"]
    assert handler_s < pgbouncer < int(listener[0]["Value"])
    assert handler_s < WITH_PROXY.resources["Proxy/Proxy"]["Properties"]["IdleClientTimeout"]
    parameters = WITH_PGBOUNCER.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert int(INI["server_idle_timeout"]) * 1000 < int(parameters["idle_session_timeout"])
    # RDS Proxy manages idle connections itself.
    parameters = WITH_PROXY.resources["Database/Parameters"]["Properties"]["Parameters"]
    assert parameters["idle_session_timeout"] == "0"


def test_the_proxy_borrow_timeout_matches_pgbouncer() -> None:
    pool = WITH_PROXY.resources["Proxy/Targets"]["Properties"]["ConnectionPoolConfigurationInfo"]
    assert pool["ConnectionBorrowTimeout"] == int(INI["query_wait_timeout"])


def test_a_stopping_pgbouncer_has_time_for_running_queries() -> None:
    container = WITH_PGBOUNCER.resources["Pooler/Task"]["Properties"]["ContainerDefinitions"][0]
    assert int(INI["query_timeout"]) < container["StopTimeout"] <= 120


@BOTH
def test_migrations_run_before_the_pooler_and_the_new_version(stack: Stack) -> None:
    resources = stack.template["Resources"]
    for name in ("Pooler", "Proxy", "Function"):
        assert resources[name]["DependsOn"] == "Migration", name
    migrated = stack.resources["Migration/Migrated"]["Properties"]
    migrate = stack.resources["Migration/Migrate"]["Properties"]
    assert migrate["Timeout"] < migrated["ServiceTimeout"]


ELSEWHERE = {
    "DatabaseHost": "other.example",
    "DatabaseIdentifier": "other",
    "DatabaseSecurityGroup": "sg-other",
    "DatabaseAdminSecret": "arn:other",
}


@pytest.mark.parametrize(
    "change",
    [
        {"MigrateImage": "another"},
        {"Release": "2"},
        {"SecretVersions": "none,2"},
        {"SecretVersions": "2,none"},
        ELSEWHERE,
    ],
    ids=["image", "release", "lookup's password", "owner's password", "host"],
)
def test_changed_migration_inputs_trigger_another_migration(change: dict[str, str]) -> None:
    before = WITH_PGBOUNCER.resources["Migration/Migrated"]["Properties"]
    assert deployment(**change).resources["Migration/Migrated"]["Properties"] != before


def test_a_new_lookup_password_replaces_pgbouncer_but_the_owner_password_does_not() -> None:
    tasks = [
        deployment(SecretVersions=versions).resources["Pooler/Task"]["Properties"]
        for versions in ("1,1", "2,1", "1,2")
    ]
    assert tasks[0] == tasks[1] != tasks[2]


def test_lambda_does_not_retry_a_migration_during_rollback() -> None:
    once = only(WITH_PGBOUNCER.of_type("AWS::Lambda::EventInvokeConfig"))
    assert (once["FunctionName"], once["Qualifier"]) == ("Migration/Migrate", "$LATEST")
    assert once["MaximumRetryAttempts"] == 0
    assert WITH_PGBOUNCER.resources["Migration/Migrated"]["DependsOn"] == "MigrateOnce"


def test_a_new_release_is_a_new_version() -> None:
    versions = {
        next(iter(deployment(Release=release).of_type("AWS::Lambda::Version")))
        for release in ("1", "2")
    }
    assert len(versions) == 2


def test_a_new_version_shifts_traffic_gradually_and_rolls_back_on_alarm() -> None:
    group = only(WITH_PGBOUNCER.of_type("AWS::CodeDeploy::DeploymentGroup"))
    assert "Canary10Percent5Minutes" in str(group["DeploymentConfigName"])
    assert {alarm["Name"] for alarm in group["AlarmConfiguration"]["Alarms"]} == {
        "Function/Errors",
        "Function/Failures",
        "Function/Slow",
    }
    assert "DEPLOYMENT_STOP_ON_ALARM" in group["AutoRollbackConfiguration"]["Events"]
    [version] = WITH_PGBOUNCER.of_type("AWS::Lambda::Version")
    for path, key in (
        ("Function/Errors", "ExecutedVersion"),
        ("Function/Failures", "version"),
        ("Function/Slow", "version"),
    ):
        watched = {
            dimension["Name"]: dimension["Value"]
            for dimension in WITH_PGBOUNCER.resources[path]["Properties"]["Dimensions"]
        }
        assert watched.get("Resource", "Function/Function:live") == "Function/Function:live"
        assert watched[key] == f"{version}.Version"


def test_a_fix_can_be_deployed_at_once_despite_alarms() -> None:
    stack = deployment(Canary="false")
    assert not stack.of_type("AWS::CodeDeploy::DeploymentGroup")
    assert "UpdatePolicy" not in stack.resources["Function/FunctionAliaslive"]


def test_a_new_version_is_checked_before_it_receives_traffic() -> None:
    policy = WITH_PGBOUNCER.resources["Function/FunctionAliaslive"]["UpdatePolicy"]
    hook = policy["CodeDeployLambdaAliasUpdate"]["BeforeAllowTrafficHook"]
    assert hook == "Function/BeforeTraffic"
    asked = WITH_PGBOUNCER.resources[hook]["Properties"]["Environment"]["Variables"]
    [version] = WITH_PGBOUNCER.of_type("AWS::Lambda::Version")
    assert asked == {"NEW_VERSION": version}


def test_the_hook_permission_does_not_depend_on_the_version() -> None:
    """A policy that has just changed may not be in effect when the hook runs."""
    policies = [
        deployment(Release=release).resources["Function/BeforeTrafficRole"]["Properties"]
        for release in ("1", "2")
    ]
    assert policies[0] == policies[1]
    assert "Function/Function.Arn:*" in str(policies[0])


def test_the_api_calls_the_alias_not_the_latest_version() -> None:
    integration = only(WITH_PGBOUNCER.of_type("AWS::ApiGatewayV2::Integration"))
    assert integration["IntegrationUri"] == "Function/FunctionAliaslive"
    permission = WITH_PGBOUNCER.resources["Function/ApiMayInvoke"]["Properties"]
    assert permission["FunctionName"] == "Function/FunctionAliaslive"
