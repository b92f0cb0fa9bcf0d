"""A rotated credential fails no request, and a missing one is reported in one clear log line."""

import asyncio
import datetime
import json
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import boto3
import botocore.auth
import pytest
from botocore.client import BaseClient
from pytest_httpserver import HTTPServer

import handler.main
from handler.warm.database import credentials, engine
from handler.warm.database.connection import connector
from handler.warm.errors import CredentialsError
from handler.warm.request_policy import classify
from handler.warm.settings import load_settings
from infra.database import roles
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import (
    ColdHandler,
    Lambda,
    PgConnection,
    administrator,
    log_lines,
    run,
    set_environment,
    wait_for_transports_closed,
)
from tests.events import http_api

READ = http_api("GET", "/orders/1")
OTHER_SECRET = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nobody-s"
TOKEN_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s/e+cret=",
    "AWS_SESSION_TOKEN": "to/ken",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


class SecretStore:
    """The application's secret in moto, with a count of the handler's reads."""

    def __init__(self, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = boto3.client("secretsmanager")
        content = self.secret_string(password)
        self.arn = self.client.create_secret(Name="app", SecretString=content)["ARN"]
        self.reads: list[str] = []
        call = BaseClient._make_api_call  # type: ignore[attr-defined]  # private

        def call_and_count(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
            if operation == "GetSecretValue":
                self.reads.append(parameters["VersionStage"])
            return call(client, operation, parameters)

        monkeypatch.setattr(BaseClient, "_make_api_call", call_and_count)

    @staticmethod
    def secret_string(password: str, user: str = roles.APP) -> str:
        """Return the secret in the format of RDS."""
        login = {"username": user, "password": password, "engine": "postgres"}
        return json.dumps(login | {"host": "elsewhere", "port": 1, "dbname": "another"})

    def put(self, secret_string: str, stage: str = "AWSCURRENT") -> str:
        """Store a new version and return its id."""
        version = self.client.put_secret_value(
            SecretId=self.arn, SecretString=secret_string, VersionStages=[stage]
        )
        return version["VersionId"]


def secret_store_for(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> SecretStore:
    """Configure the handler for `DB_AUTH=secret`, with the secret in moto."""
    secret_store = SecretStore(stack.settings().password.get_secret_value(), monkeypatch)
    environment = stack.environment() | {"DB_AUTH": "secret", "DB_SECRET_ARN": secret_store.arn}
    del environment["DB_PASS"]
    set_environment(monkeypatch, environment)
    return secret_store


@pytest.fixture
def secret_store(aws: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> SecretStore:
    return secret_store_for(stack, monkeypatch)


@pytest.fixture
def own_secret_store(aws: str, own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> SecretStore:
    """Configure the handler of the test's own stack, for a test that changes the password."""
    return secret_store_for(own_stack, monkeypatch)


def close_pooled_connections() -> None:
    handler.main.handler.loop.run(engine.get_engine().dispose)


def as_administrator(stack: Stack, work: Callable[[PgConnection], Any]) -> None:
    async def connect_and_work() -> None:
        async with administrator(stack) as admin:
            await work(admin)

    asyncio.run(connect_and_work())


def count_successes(invoke: Lambda, requests: int, before: dict[int, Callable[[], Any]]) -> int:
    """Send requests, each on a new connection, and count the successful ones.

    `before` maps a request's number to an action that precedes it.
    """
    count = 0
    for number in range(requests):
        before.get(number, lambda: None)()
        close_pooled_connections()
        count += invoke(READ)["statusCode"] == 200
    return count


def rotate(stack: Stack, secret_store: SecretStore) -> None:
    as_administrator(stack, lambda admin: roles.set_password(admin, roles.APP, "new one"))
    secret_store.put(secret_store.secret_string("new one"))


def test_a_rotation_fails_no_request_and_reads_the_secret_once(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    rotation = partial(rotate, own_stack, own_secret_store)
    with ColdHandler() as invoke:
        assert count_successes(invoke, 200, {100: rotation}) == 200
    assert own_secret_store.reads == ["AWSCURRENT"] * 2


def test_the_pending_password_is_used_before_the_label_moves(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    """A rotation of Secrets Manager calls setSecret, testSecret, then finishSecret."""
    secret = own_secret_store.client.describe_secret(SecretId=own_secret_store.arn)
    versions = {"old": next(iter(secret["VersionIdsToStages"]))}

    def set_secret() -> None:
        versions["new"] = own_secret_store.put(
            own_secret_store.secret_string("new one"), "AWSPENDING"
        )
        as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "new one"))

    def finish_secret() -> None:
        own_secret_store.client.update_secret_version_stage(
            SecretId=own_secret_store.arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=versions["new"],
            RemoveFromVersionId=versions["old"],
        )

    with ColdHandler() as invoke:
        assert count_successes(invoke, 30, {10: set_secret, 20: finish_secret}) == 30
    assert own_secret_store.reads == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING"]


def test_the_secret_names_the_user_when_users_alternate(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    """Both passwords are valid for a while, so the secret is read again only after one expires."""

    async def create_alternate_role(admin: PgConnection) -> None:
        await admin.execute(f"CREATE ROLE appuser_clone LOGIN IN ROLE {roles.APP}")
        await roles.set_password(admin, "appuser_clone", "its own")

    def rotate() -> None:
        as_administrator(own_stack, create_alternate_role)
        own_secret_store.put(own_secret_store.secret_string("its own", "appuser_clone"))

    def terminate_sessions() -> None:
        as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "unknown"))

    with ColdHandler() as invoke:
        assert count_successes(invoke, 15, {5: rotate}) == 15
        assert len(own_secret_store.reads) == 1
        assert count_successes(invoke, 15, {5: terminate_sessions}) == 15
    assert len(own_secret_store.reads) == 2


def test_warm_connections_survive_and_one_login_updates_pgbouncer(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    """PgBouncer opens server connections with the verifier of the role's last login."""
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 200
        rotate(own_stack, own_secret_store)
        assert invoke(READ)["statusCode"] == 200
        asyncio.run(log_in(own_stack, "new one"))  # as any new sandbox does
        with own_stack.pgbouncer.console() as console:
            console.execute("RECONNECT")
        assert [invoke(READ)["statusCode"] for _ in range(3)] == [200] * 3
    assert len(own_secret_store.reads) == 1


def test_exactly_one_request_fails_without_a_new_login(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    """PgBouncer reports `query_wait_timeout`, as in overload, where nothing is retried."""
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 200
        rotate(own_stack, own_secret_store)
        with own_stack.pgbouncer.console() as console:
            console.execute("RECONNECT")
        assert [invoke(READ)["statusCode"] for _ in range(3)] == [503, 200, 200]


async def log_in(stack: Stack, password: str) -> None:
    await (await connector(stack.settings(through=stack.pgbouncer, password=password))()).close()


@pytest.fixture
def network(
    secret_store: SecretStore, aws: str, monkeypatch: pytest.MonkeyPatch
) -> Iterator[TcpProxy]:
    """Put a TCP proxy between the handler and Secrets Manager."""
    with TcpProxy("127.0.0.1", port_of(aws)) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", f"http://{proxy.host}:{proxy.port}")
        yield proxy


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def assert_one_log_line(capsys: pytest.CaptureFixture[str], cause: str, hint: str) -> None:
    captured = capsys.readouterr()
    output = captured.out + captured.err
    [line] = log_lines(output)
    assert (line["outcome"], line["status"], line["attempts"]) == ("failed", 503, 1)
    assert cause in line["cause"]
    assert hint in line["hint"]
    assert not re.search("hunter2|testing|Traceback", output)


@pytest.mark.parametrize(
    ("code", "hint"),
    [
        ("AccessDeniedException", "allow the function's role"),
        ("ExpiredTokenException", "session"),
        ("InvalidSignatureException", "session"),
        ("UnrecognizedClientException", "reach"),
    ],
)
def test_a_secrets_manager_error_is_reported_in_one_line_until_fixed(
    code: str,
    hint: str,
    network: TcpProxy,
    aws: str,
    httpserver: HTTPServer,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A message may quote the session token.
    error = {"__type": code, "message": "hunter2"}
    httpserver.expect_request("/").respond_with_json(error, status=400)
    network.redirect_to("127.0.0.1", httpserver.port)
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 503
        assert_one_log_line(capsys, f"no credentials: {code}", hint)
        network.reset_connections()
        network.redirect_to("127.0.0.1", port_of(aws))
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("silent", [False, True], ids=["no network", "packets swallowed"])
def test_an_unreachable_secrets_manager_is_reported_before_the_deadline(
    silent: bool,
    network: TcpProxy,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_CONNECT_TIMEOUT", "1")
    with ColdHandler() as invoke:
        network.stall() if silent else network.refuse()
        started = time.monotonic()
        assert invoke(READ)["statusCode"] == 503
        assert time.monotonic() - started < 5
        assert_one_log_line(capsys, "no credentials: ", "the function's subnets")
        network.resume() if silent else network.refuse(False)
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("secret", ["hunter2", '{"username": "appuser"}', '["hunter2"]'])
def test_a_malformed_secret_is_reported_in_one_line_until_fixed(
    secret: str, secret_store: SecretStore, capsys: pytest.CaptureFixture[str]
) -> None:
    original = secret_store.client.get_secret_value(
        SecretId=secret_store.arn, VersionStage="AWSCURRENT"
    )
    secret_store.put(secret)
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 503
        assert_one_log_line(capsys, "not JSON with a password", "DB_SECRET_ARN")
        secret_store.put(original["SecretString"])
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("wrong_part", ["name", "region"])
def test_a_wrong_arn_is_reported_in_one_line(
    wrong_part: str,
    secret_store: SecretStore,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    arn_in_another_region = secret_store.arn.replace("eu-central-1", "eu-west-1")
    monkeypatch.setenv(
        "DB_SECRET_ARN", OTHER_SECRET if wrong_part == "name" else arn_in_another_region
    )
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 503
    assert_one_log_line(capsys, "ResourceNotFoundException", "DB_SECRET_ARN")


def test_a_permanently_wrong_password_is_read_twice_and_rejected(
    secret_store: SecretStore, capsys: pytest.CaptureFixture[str]
) -> None:
    secret_store.put(secret_store.secret_string("hunter2"))
    with ColdHandler() as invoke:
        assert invoke(READ)["statusCode"] == 503
    assert_one_log_line(capsys, "authentication failed", "DB_AUTH")
    assert secret_store.reads.count("AWSCURRENT") == 2


async def test_ten_concurrent_connections_read_the_secret_once(
    own_stack: Stack, own_secret_store: SecretStore
) -> None:
    connect = connector(load_settings())
    for reads in (1, 2):
        connections = await asyncio.gather(*(connect() for _ in range(10)))
        await asyncio.gather(*(connection.close() for connection in connections))
        assert len(own_secret_store.reads) == reads
        if reads == 1:
            await asyncio.to_thread(rotate, own_stack, own_secret_store)
    await wait_for_transports_closed()


async def test_an_iam_token_equals_the_one_boto3_generates(monkeypatch: pytest.MonkeyPatch) -> None:
    set_environment(monkeypatch, TOKEN_ENVIRONMENT)
    host, user = "db.eu-central-1.rds.amazonaws.com", "app user+é"
    sign = credentials.from_settings(load_settings(auth="iam", host=host, user=user, port=5433))
    now = datetime.datetime.now(datetime.UTC)
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda: now)
    _, token = await sign(None)
    assert token == boto3.Session().client("rds").generate_db_auth_token(host, 5433, user)
    assert "X-Amz-Security-Token=to%2Fken" in token


@pytest.mark.parametrize(
    ("missing", "cause"), [("AWS_ACCESS_KEY_ID", "Credentials"), ("AWS_DEFAULT_REGION", "NoRegion")]
)
async def test_an_iam_token_needs_a_role_and_a_region(
    missing: str, cause: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_environment(monkeypatch, TOKEN_ENVIRONMENT)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv(missing)
    sign = credentials.from_settings(load_settings(auth="iam", host="db.internal"))
    with pytest.raises(CredentialsError, match=cause) as error_info:
        await sign(None)
    assert "AWS_REGION" in classify(error_info.value).hint


def test_the_aws_sdk_is_imported_only_when_needed_and_during_init() -> None:
    script = "import sys, handler.main; print([name for name in sys.modules if name in {names!r}])"
    script = script.format(names=["botocore", "boto3", "botocore.session", "snapshot_restore_py"])
    assert run("-c", script, env={"DB_AUTH": "password"})[1] == "[]\n"
    variables = {"DB_AUTH": "secret", "DB_SECRET_ARN": OTHER_SECRET}
    assert run("-c", script, env=variables)[1] == "['botocore', 'botocore.session']\n"


def test_a_missing_botocore_is_reported_at_startup() -> None:
    script = "import sys; sys.modules['botocore'] = None; import handler.main"
    status, output = run("-c", script, env={"DB_AUTH": "secret", "DB_SECRET_ARN": OTHER_SECRET})
    assert status == 1
    assert "SettingsError: DB_AUTH is 'secret': botocore is not installed" in output
