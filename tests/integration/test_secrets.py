"""Secrets appear in no log, object or process list, and caller input is never executed as SQL."""

import json
import logging
import uuid
from pathlib import Path

import boto3
import psutil
import pytest

from infra.database import roles
from infra.local.fleet import Fleet
from infra.local.stack import Stack
from tests.conftest import Lambda
from tests.events import http_api
from tests.integration.engines import handler_engine
from tests.integration.failing_fleet import READ, LoggedFleet, outcome

WRONG_PASSWORD = "Zq9~Xw'\"\\ /@%41"
#: The most verbose configuration of Lambda's runtime interface client.
DEBUG_LOGGING = {"AWS_LAMBDA_LOG_FORMAT": "JSON", "AWS_LAMBDA_LOG_LEVEL": "DEBUG"}
AWS_KEYS = {
    "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
    "AWS_SECRET_ACCESS_KEY": "s-e-c-r-e-t",
    "AWS_SESSION_TOKEN": "t-o-k-e-n",
}


def passwords(stack: Stack) -> list[str]:
    """Return the passwords of all roles."""
    names = (roles.OWNER, roles.APP, roles.LOOKUP)
    of_roles = [stack.settings(user=role).password.get_secret_value() for role in names]
    return [*of_roles, stack.postgres.password]


# --- Logs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["direct", "through PgBouncer"])
async def test_a_failed_login_is_logged_without_the_password_at_any_level(
    own_stack: Stack, tmp_path: Path, path: str
) -> None:
    """The logs of PgBouncer and Postgres do not contain it either."""
    with own_stack.another_pgbouncer(settings={"verbose": 3}) as bouncer:
        environment = own_stack.environment(bouncer, direct=path == "direct") | DEBUG_LOGGING
        environment["DB_PASS"] = WRONG_PASSWORD
        async with LoggedFleet(environment, tmp_path) as fleet:
            assert outcome(await fleet.invoke(READ)) == (503, "1")
            assert fleet.last["cause"] == "authentication failed"
        log = (tmp_path / "sandbox-1.log").read_text()
        assert '"level": "DEBUG"' in log
        log += bouncer.log_since_start() + own_stack.postgres.log_since_start()
        assert WRONG_PASSWORD[:6] not in log


@pytest.mark.parametrize("auth", ["secret", "iam"])
async def test_an_aws_credential_is_never_logged_at_any_level(
    stack: Stack, tmp_path: Path, aws: str, auth: str
) -> None:
    """botocore's DEBUG lines quote whole responses and the signatures of tokens."""
    arn = boto3.client("secretsmanager").create_secret(
        Name="app", SecretString=json.dumps({"password": WRONG_PASSWORD})
    )["ARN"]
    environment = stack.environment() | AWS_KEYS | DEBUG_LOGGING
    environment |= {"DB_AUTH": auth, "DB_SECRET_ARN": arn, "AWS_ENDPOINT_URL": aws}
    async with LoggedFleet(environment, tmp_path) as fleet:
        assert outcome(await fleet.invoke(READ)) == (503, "1")
        assert fleet.last["cause"] == "authentication failed"
    log = (tmp_path / "sandbox-1.log").read_text()
    assert '"level": "DEBUG"' in log
    for secret in (WRONG_PASSWORD[:6], AWS_KEYS["AWS_SECRET_ACCESS_KEY"], "t-o-k-e-n", "Signature"):
        assert secret not in log, secret


# --- Objects -------------------------------------------------------------------------------------


async def test_the_engine_and_its_objects_reveal_no_password(
    stack: Stack, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "sqlalchemy")  # its pool logs each connection
    settings = stack.settings()
    password = settings.password.get_secret_value()
    async with handler_engine(settings) as warm_engine:
        async with warm_engine.connect() as connection:
            driver_connection = (await connection.get_raw_connection()).driver_connection
            engine_parts = (warm_engine, warm_engine.url, warm_engine.pool)
            for item in (settings, *engine_parts, connection, driver_connection):
                assert password not in f"{item!r}{item}"
        assert password not in warm_engine.url.render_as_string(hide_password=False)
    assert "Created new connection" in caplog.text
    assert password not in caplog.text


# --- Process list --------------------------------------------------------------------------------


async def test_no_process_has_a_password_on_its_command_line(stack: Stack) -> None:
    """Every user can read command lines."""
    async with Fleet(stack.environment(), concurrency=2) as fleet:
        result = await fleet.invoke(READ)
        assert result.payload["statusCode"] == 200
        command_lines = {
            process.pid: str(process.info["cmdline"])
            for process in psutil.process_iter(["cmdline"])
        }
    assert stack.postgres.process
    assert stack.pgbouncer.process
    servers = [stack.postgres.process.pid, stack.pgbouncer.process.pid]
    assert {*servers, result.pid} <= command_lines.keys()
    for password in passwords(stack):
        assert password not in "".join(command_lines.values())


def test_no_server_has_a_password_in_its_environment(stack: Stack) -> None:
    for server in (stack.postgres, stack.pgbouncer):
        assert server.process
        try:
            environment = str(psutil.Process(server.process.pid).environ())
        except psutil.AccessDenied:
            pytest.skip("the environment of another account's process cannot be read here")
        for password in passwords(stack):
            assert password not in environment


# --- Values are never SQL ------------------------------------------------------------------------

NAMES = [
    "Robert'); DROP TABLE orders; --",
    "' OR '1'='1",
    '"; SELECT pg_sleep(9); --',
    "$1 :status %s %(id)s {} \\' \\\\ $$x$$ /* */",
]


@pytest.mark.parametrize("name", NAMES)
def test_text_that_looks_like_sql_is_stored_unchanged(lambda_handler: Lambda, name: str) -> None:
    key, status = f"{name[:20]}{uuid.uuid4()}", name[:32]
    body = json.dumps({"customer_name": name, "status": status})
    for _ in range(2):  # the second request is a replay
        created = lambda_handler(http_api("POST", "/orders", body=body, idempotency_key=key))
        assert created["statusCode"] == 201
    order = json.loads(created["body"])
    assert json.loads(lambda_handler(http_api("GET", f"/orders/{order['id']}"))["body"]) == order
    assert (order["customer_name"], order["status"]) == (name, status)


async def test_a_status_that_looks_like_sql_selects_only_that_status(
    lambda_handler: Lambda,
) -> None:
    response = lambda_handler(http_api("GET", "/orders", "status=%27+OR+%271%27%3D%271"))
    assert {order["status"] for order in json.loads(response["body"])["orders"]} <= {NAMES[1]}
