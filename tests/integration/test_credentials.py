"""A login that changes costs no request; one that cannot be had is one clear line."""

import asyncio
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import asyncpg
import boto3
import pytest
from botocore.client import BaseClient

import handler.main
from handler import credentials, engine
from handler.connection import connector
from handler.failures import CredentialsError, classify
from handler.settings import load
from infra.database import roles
from infra.local.stack import DATABASE, Stack
from infra.local.wire import Relay
from tests.conftest import Lambda, cold_runtime, let_go, log_lines, run
from tests.events import http_api

READ = http_api("GET", "/orders/1")
NOBODY_S = "arn:aws:secretsmanager:eu-central-1:123456789012:secret:nobody-s"
TOKEN_ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s/e+cret=",
    "AWS_SESSION_TOKEN": "to/ken",
    "AWS_DEFAULT_REGION": "eu-central-1",
}


class Vault:
    """The application's secret in moto, and how often the handler read it."""

    def __init__(self, password: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.client = boto3.client("secretsmanager")
        said = self.shape(password)
        self.arn = self.client.create_secret(Name="app", SecretString=said)["ARN"]
        self.reads: list[str] = []
        call = BaseClient._make_api_call  # type: ignore[attr-defined]  # private

        def counted(client: Any, operation: str, parameters: dict[str, Any]) -> Any:
            if operation == "GetSecretValue":
                self.reads.append(parameters["VersionStage"])
            return call(client, operation, parameters)

        monkeypatch.setattr(BaseClient, "_make_api_call", counted)

    @staticmethod
    def shape(password: str, user: str = roles.APP) -> str:
        """As RDS writes it."""
        login = {"username": user, "password": password, "engine": "postgres"}
        return json.dumps(login | {"host": "elsewhere", "port": 1, "dbname": "another"})

    def put(self, said: str, stage: str = "AWSCURRENT") -> str:
        put = self.client.put_secret_value
        return put(SecretId=self.arn, SecretString=said, VersionStages=[stage])["VersionId"]


def secretive(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Vault:
    """The handler's environment is set to `DB_AUTH=secret`, with the secret in the vault."""
    vault = Vault(stack.settings().password.get_secret_value(), monkeypatch)
    environment = stack.environment() | {"DB_AUTH": "secret", "DB_SECRET_ARN": vault.arn}
    del environment["DB_PASS"]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return vault


@pytest.fixture
def vault(aws: str, stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Vault:
    return secretive(stack, monkeypatch)


@pytest.fixture
def own_vault(aws: str, own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Vault:
    """For a test that changes the password."""
    return secretive(own_stack, monkeypatch)


def drop_the_pool() -> None:
    handler.main._loop.run(engine.engine().dispose)


def as_administrator(stack: Stack, work: Callable[["asyncpg.Connection[Any]"], Any]) -> None:
    async def do() -> None:
        connection = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
        try:
            await work(connection)
        finally:
            await connection.close()

    asyncio.run(do())


def answered(invoke: Lambda, requests: int, before: dict[int, Callable[[], Any]]) -> int:
    """How many of them were, each on a connection of its own."""
    count = 0
    for number in range(requests):
        before.get(number, lambda: None)()
        drop_the_pool()
        count += invoke(READ)["statusCode"] == 200
    return count


def test_a_rotation_costs_no_request_and_one_read(own_stack: Stack, own_vault: Vault) -> None:
    def rotate() -> None:
        as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "new one"))
        own_vault.put(own_vault.shape("new one"))

    with cold_runtime() as invoke:
        assert answered(invoke, 200, {100: rotate}) == 200
    assert own_vault.reads == ["AWSCURRENT"] * 2


def test_between_the_password_and_the_label_the_pending_one_counts(
    own_stack: Stack, own_vault: Vault
) -> None:
    """As Secrets Manager's own rotations go about it: setSecret, testSecret, then finishSecret."""
    old = own_vault.client.describe_secret(SecretId=own_vault.arn)["VersionIdsToStages"]
    versions = {"old": next(iter(old))}

    def set_secret() -> None:
        versions["new"] = own_vault.put(own_vault.shape("new one"), "AWSPENDING")
        as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "new one"))

    def finish_secret() -> None:
        own_vault.client.update_secret_version_stage(
            SecretId=own_vault.arn,
            VersionStage="AWSCURRENT",
            MoveToVersionId=versions["new"],
            RemoveFromVersionId=versions["old"],
        )

    with cold_runtime() as invoke:
        assert answered(invoke, 30, {10: set_secret, 20: finish_secret}) == 30
    assert own_vault.reads == ["AWSCURRENT", "AWSCURRENT", "AWSPENDING"]


def test_with_two_users_that_take_turns_the_secret_says_which(
    own_stack: Stack, own_vault: Vault
) -> None:
    """Both passwords are valid for a while: nothing is refused, so nothing is read again, until the
    old one ends."""

    async def make_the_other(admin: "asyncpg.Connection[Any]") -> None:
        await admin.execute(f"CREATE ROLE appuser_clone LOGIN IN ROLE {roles.APP}")
        await roles.set_password(admin, "appuser_clone", "its own")

    def rotate() -> None:
        as_administrator(own_stack, make_the_other)
        own_vault.put(own_vault.shape("its own", "appuser_clone"))

    def end_the_old() -> None:
        as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "unknown"))

    with cold_runtime() as invoke:
        assert answered(invoke, 15, {5: rotate}) == 15
        assert len(own_vault.reads) == 1
        assert answered(invoke, 15, {5: end_the_old}) == 15
    assert len(own_vault.reads) == 2


def rotated(own_stack: Stack, vault: Vault) -> None:
    as_administrator(own_stack, lambda admin: roles.set_password(admin, roles.APP, "new one"))
    vault.put(vault.shape("new one"))


def test_warm_connections_go_on_and_one_new_login_is_enough_for_pgbouncer(
    own_stack: Stack, own_vault: Vault
) -> None:
    """It opens server connections with what it kept of the role's last login."""
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 200
        rotated(own_stack, own_vault)
        assert invoke(READ)["statusCode"] == 200
        asyncio.run(log_in(own_stack, "new one"))  # as any sandbox that starts does
        with own_stack.pgbouncer.console() as console:
            console.execute("RECONNECT")
        assert [invoke(READ)["statusCode"] for _ in range(3)] == [200] * 3
    assert len(own_vault.reads) == 1


def test_without_any_new_login_one_request_is_lost_and_no_more(
    own_stack: Stack, own_vault: Vault
) -> None:
    """PgBouncer says `query_wait_timeout`, as in overload, where nothing is tried again."""
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 200
        rotated(own_stack, own_vault)
        with own_stack.pgbouncer.console() as console:
            console.execute("RECONNECT")
        assert [invoke(READ)["statusCode"] for _ in range(3)] == [503, 200, 200]


async def log_in(stack: Stack, password: str) -> None:
    settings = stack.settings(through=stack.pgbouncer, password=password)
    await (await connector(settings)()).close()


class Refusing(BaseHTTPRequestHandler):
    """A Secrets Manager that has one answer, whose text quotes the session token, as the real one's
    may."""

    code = ""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        body = json.dumps({"__type": self.code, "message": "hunter2"}).encode()
        self.send_response(400)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def network(vault: Vault, aws: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Relay]:
    """Between the handler and Secrets Manager."""
    with Relay("127.0.0.1", port_of(aws)) as relay:
        address = f"http://{relay.host}:{relay.port}"
        monkeypatch.setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", address)
        yield relay


def port_of(address: str) -> int:
    return int(address.rpartition(":")[2])


def one_clear_line(printed: str, fault: str, remedy: str) -> None:
    [line] = log_lines(printed)
    assert (line["outcome"], line["status"], line["attempts"]) == ("failed", 503, 1)
    assert fault in line["fault"]
    assert remedy in line["remedy"]
    assert not re.search("hunter2|testing|Traceback", printed)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("AccessDeniedException", "allow the function's role"),
        ("ExpiredTokenException", "session"),
        ("InvalidSignatureException", "session"),
        ("UnrecognizedClientException", "reach"),
    ],
)
def test_a_refusal_is_one_clear_line_until_it_is_mended(
    code: str,
    remedy: str,
    network: Relay,
    aws: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    server = HTTPServer(("127.0.0.1", 0), type("Answers", (Refusing,), {"code": code}))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    network.lead_to("127.0.0.1", server.server_port)
    with cold_runtime() as invoke:
        try:
            assert invoke(READ)["statusCode"] == 503
        finally:
            server.shutdown()
            server.server_close()
            thread.join()
        printed = capsys.readouterr()
        one_clear_line(printed.out + printed.err, f"no login could be had: {code}", remedy)
        network.cut()
        network.lead_to("127.0.0.1", port_of(aws))
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("silent", [False, True], ids=["no network", "packets swallowed"])
def test_without_a_network_the_line_comes_inside_the_deadline(
    silent: bool,
    network: Relay,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DB_CONNECT_TIMEOUT", "1")
    with cold_runtime() as invoke:
        network.stall() if silent else network.refuse()
        begun = time.monotonic()
        assert invoke(READ)["statusCode"] == 503
        assert time.monotonic() - begun < 5
        printed = capsys.readouterr()
        one_clear_line(printed.out + printed.err, "no login could be had: ", "from its subnets")
        network.resume() if silent else network.refuse(False)
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("secret", ["hunter2", '{"username": "appuser"}', '["hunter2"]'])
def test_a_malformed_secret_is_one_clear_line_until_it_is_mended(
    secret: str, vault: Vault, capsys: pytest.CaptureFixture[str]
) -> None:
    good = vault.client.get_secret_value(SecretId=vault.arn, VersionStage="AWSCURRENT")
    vault.put(secret)
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 503
        printed = capsys.readouterr()
        one_clear_line(printed.out + printed.err, "no JSON with a password", "DB_SECRET_ARN")
        vault.put(good["SecretString"])
        assert invoke(READ)["statusCode"] == 200


@pytest.mark.parametrize("wrong", ["name", "region"])
def test_a_wrong_arn_is_one_clear_line(
    wrong: str,
    vault: Vault,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    elsewhere = vault.arn.replace("eu-central-1", "eu-west-1")
    monkeypatch.setenv("DB_SECRET_ARN", NOBODY_S if wrong == "name" else elsewhere)
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 503
    printed = capsys.readouterr()
    one_clear_line(printed.out + printed.err, "ResourceNotFoundException", "DB_SECRET_ARN")


def test_a_password_that_is_wrong_and_stays_so_is_read_twice_and_refused(
    vault: Vault, capsys: pytest.CaptureFixture[str]
) -> None:
    vault.put(vault.shape("hunter2"))
    with cold_runtime() as invoke:
        assert invoke(READ)["statusCode"] == 503
    printed = capsys.readouterr()
    one_clear_line(printed.out + printed.err, "authentication failed", "DB_AUTH")
    assert vault.reads.count("AWSCURRENT") == 2


async def test_ten_connections_at_once_read_the_secret_once(
    own_stack: Stack, own_vault: Vault
) -> None:
    made = connector(load())
    for reads in (1, 2):
        raws = await asyncio.gather(*(made() for _ in range(10)))
        await asyncio.gather(*(raw.close() for raw in raws))
        assert len(own_vault.reads) == reads
        if reads == 1:
            await asyncio.to_thread(rotated, own_stack, own_vault)
    await let_go()


async def test_a_token_is_the_one_that_boto3_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in TOKEN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    host, user = "db.eu-central-1.rds.amazonaws.com", "app user+é"
    settings = load(auth="iam", host=host, user=user, port=5433)
    sign = credentials.from_settings(settings)
    for _ in range(3):  # the clock may strike between the two
        _, token = await sign(None)
        expected = boto3.Session().client("rds").generate_db_auth_token(host, 5433, user)
        if token == expected:
            break
    assert token == expected
    assert "X-Amz-Security-Token=to%2Fken" in token


@pytest.mark.parametrize(
    ("missing", "fault"),
    [("AWS_ACCESS_KEY_ID", "Credentials"), ("AWS_DEFAULT_REGION", "NoRegion")],
)
async def test_without_a_role_or_a_region_there_is_no_token(
    missing: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in TOKEN_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv(missing)
    sign = credentials.from_settings(load(auth="iam", host="db.internal"))
    with pytest.raises(CredentialsError, match=fault) as raised:
        await sign(None)
    assert "AWS_REGION" in classify(raised.value).remedy


def test_nothing_of_aws_is_imported_for_a_password_and_all_of_it_in_init_else() -> None:
    script = "import sys, handler.main; print([n for n in sys.modules if n in {names!r}])"
    script = script.format(names=["botocore", "boto3", "botocore.session", "snapshot_restore_py"])
    assert run("-c", script, env={"DB_AUTH": "password"})[1] == "[]\n"
    arn = {"DB_AUTH": "secret", "DB_SECRET_ARN": NOBODY_S}
    assert run("-c", script, env=arn)[1] == "['botocore', 'botocore.session']\n"


def test_without_botocore_the_start_says_what_to_install() -> None:
    script = "import sys; sys.modules['botocore'] = None; import handler.main"
    code, output = run("-c", script, env={"DB_AUTH": "secret", "DB_SECRET_ARN": NOBODY_S})
    assert code == 1
    assert "SettingsError: DB_AUTH is 'secret': there is no botocore" in output
