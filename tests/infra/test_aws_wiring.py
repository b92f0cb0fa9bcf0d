"""What the handler is told, what waits for what and for how long, and how a version goes out."""

import re
from pathlib import Path

import pytest

import handler.main
from handler.settings import Settings, load
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
        "Function/Failures",
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
