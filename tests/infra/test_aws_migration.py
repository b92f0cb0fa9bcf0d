"""Migrations and password rotation on a managed database, without a superuser or `pg_authid`."""

import asyncio
import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import boto3
import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from infra.aws import migration, rotation
from infra.database import __main__ as database
from infra.database import roles
from infra.local import ROOT
from infra.local.postgres import ADMIN
from infra.local.stack import DATABASE, Stack
from tests.conftest import administrator, wait_for_transports_closed
from tests.integration import role_logins

#: Two functions have this name: migrations 0005 and 0006 create one each.
PLACE_ORDER = "SELECT array_agg(oid::regprocedure::text) FROM pg_proc WHERE proname = 'place_order'"


@dataclass
class CloudFormation:
    """Sends requests to the custom resource, and collects its responses."""

    response_url: str
    responses: list[dict[str, Any]] = field(default_factory=list)

    def request(self, request_type: str) -> dict[str, Any]:
        """Invoke the migration's function and return its response to CloudFormation."""
        names = ("StackId", "RequestId", "LogicalResourceId")
        event = {
            "RequestType": request_type,
            "ResponseURL": self.response_url,
            **{name: name.lower() for name in names},
        }
        migration.handler(event, None)
        [response] = self.responses
        return response

    def receive(self, request: Request) -> Response:
        self.responses.append(json.loads(request.data))
        return Response()


@pytest.fixture
def cloudformation(httpserver: HTTPServer) -> CloudFormation:
    double = CloudFormation(httpserver.url_for("/response"))
    httpserver.expect_request("/response", "PUT").respond_with_handler(double.receive)
    return double


@pytest.fixture
def secrets(aws: str, own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Create the secrets, set the environment as in migration.yaml, and return the ARNs by role."""
    client = boto3.client("secretsmanager")
    passwords = {
        "ADMIN": (ADMIN, own_stack.postgres.password),
        "OWNER": (roles.OWNER, own_stack.settings(user=roles.OWNER).password.get_secret_value()),
        "APP": (roles.APP, own_stack.settings().password.get_secret_value()),
        "LOOKUP": (roles.LOOKUP, own_stack.settings(user=roles.LOOKUP).password.get_secret_value()),
    }
    arns = {}
    for name, (user, password) in passwords.items():
        value = json.dumps({"username": user, "password": password})
        arns[name] = client.create_secret(Name=name, SecretString=value)["ARN"]
        monkeypatch.setenv(f"{name}_SECRET_ARN", arns[name])
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "migrate")  # where settings have no defaults
    monkeypatch.setenv("DB_HOST", own_stack.postgres.host)
    monkeypatch.setenv("DB_PORT", str(own_stack.postgres.port))
    monkeypatch.setenv("DB_NAME", DATABASE)
    return arns


def execute(stack: Stack, statement: str) -> Any:
    """Run a statement as the administrator and return the first value of its first row."""

    async def fetch() -> Any:
        async with administrator(stack) as admin:
            return await admin.fetchval(statement)

    return asyncio.run(fetch())


def verifier(stack: Stack) -> str:
    return str(execute(stack, "SELECT verifier FROM pooler.verifiers"))


def log_in_through_pooler(stack: Stack, password: str) -> str:
    """Log in as the application and return the role of the session."""

    async def log_in() -> str:
        try:
            return await role_logins.through_pooler(stack, password)
        finally:
            await wait_for_transports_closed()

    return asyncio.run(log_in())


def test_an_empty_database_gets_roles_lookup_and_tables(
    own_stack: Stack, secrets: dict[str, str], cloudformation: CloudFormation
) -> None:
    async def drop_everything() -> None:
        admin = await asyncpg.connect(**own_stack.postgres.admin, database="postgres")
        await admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        for role in (roles.APP, roles.LOOKUP, roles.OWNER):
            await admin.execute(f"DROP ROLE {role}")
        await admin.close()

    asyncio.run(drop_everything())
    assert cloudformation.request("Create") == {
        "Status": "SUCCESS",
        "Reason": "",
        "PhysicalResourceId": "migration",
        "StackId": "stackid",
        "RequestId": "requestid",
        "LogicalResourceId": "logicalresourceid",
    }
    password = migration.secret(secrets["APP"])["password"]
    assert log_in_through_pooler(own_stack, password) == roles.APP


def test_an_update_keeps_valid_passwords(
    own_stack: Stack, secrets: dict[str, str], cloudformation: CloudFormation
) -> None:
    """Even a new salt would lock PgBouncer out of Postgres until another client logs in."""
    before = verifier(own_stack)
    assert cloudformation.request("Update")["Status"] == "SUCCESS"
    assert verifier(own_stack) == before


def test_older_code_keeps_a_newer_schema_and_reports_it(
    own_stack: Stack,
    secrets: dict[str, str],
    cloudformation: CloudFormation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This happens when an earlier version is deployed, and when CloudFormation rolls back."""
    execute(own_stack, "UPDATE alembic_version SET version_num = '9999'")
    assert cloudformation.request("Update")["Status"] == "SUCCESS"
    assert execute(own_stack, "SELECT version_num FROM alembic_version") == "9999"
    [record] = [record for record in caplog.records if record.name == "infra.database.schema"]
    assert "revision 9999, which this version does not know" in record.getMessage()


def test_a_failed_migration_is_reported_at_once_without_secrets(
    own_stack: Stack,
    secrets: dict[str, str],
    cloudformation: CloudFormation,
    caplog: pytest.LogCaptureFixture,
) -> None:
    invalid = json.dumps({"username": ADMIN, "password": "hunter2"})
    boto3.client("secretsmanager").put_secret_value(SecretId=secrets["ADMIN"], SecretString=invalid)
    response = cloudformation.request("Update")
    assert response["Status"] == "FAILED"
    assert response["Reason"].startswith("InvalidPasswordError")
    assert "hunter2" not in str(response) + caplog.text


def test_deleting_the_stack_leaves_the_database_unchanged(
    secrets: dict[str, str], cloudformation: CloudFormation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(migration, "migrate")
    assert cloudformation.request("Delete")["Status"] == "SUCCESS"


def rotate(secret: str) -> None:
    """Call the rotation's function as Secrets Manager does, with a repeated last step."""
    token = "9c2b8f0e-6a53-4d1f-8e7b-5b1c6f0a2d34"
    for step in ("createSecret", "setSecret", "testSecret", "finishSecret", "finishSecret"):
        rotation.handler({"SecretId": secret, "ClientRequestToken": token, "Step": step}, None)


def test_the_owner_password_is_rotated_without_telling_the_pooler(
    own_stack: Stack, secrets: dict[str, str]
) -> None:
    old = migration.secret(secrets["OWNER"])["password"]
    rotate(secrets["OWNER"])
    new = migration.secret(secrets["OWNER"], VersionStage="AWSCURRENT")["password"]
    assert asyncio.run(rotation.is_password_accepted(roles.OWNER, new))
    assert not asyncio.run(rotation.is_password_accepted(roles.OWNER, old))
    # Only the application's password is in the lookup.
    assert execute(own_stack, "SELECT count(*) FROM pooler.verifiers") == 1


def test_the_password_is_rotated_while_the_login_is_revoked(
    own_stack: Stack, secrets: dict[str, str]
) -> None:
    """As in "Revoke the application's database login" in the runbook."""
    old = migration.secret(secrets["APP"])["password"]
    execute(own_stack, "ALTER ROLE appuser NOLOGIN")
    rotate(secrets["APP"])
    new = migration.secret(secrets["APP"], VersionStage="AWSCURRENT")["password"]
    assert new != old
    assert not asyncio.run(rotation.is_password_accepted(roles.APP, old))
    with pytest.raises(asyncpg.PostgresError, match="no such user"):
        log_in_through_pooler(own_stack, new)
    execute(own_stack, "ALTER ROLE appuser LOGIN")
    assert log_in_through_pooler(own_stack, new) == roles.APP


@pytest.mark.parametrize("role", [roles.LOOKUP, ADMIN])
def test_no_other_role_password_is_rotated(secrets: dict[str, str], role: str) -> None:
    with pytest.raises(ValueError, match="the secret's username is neither"):
        asyncio.run(rotation.change_password(role, "new"))


def test_only_the_rotated_password_is_accepted_by_the_pooler(
    own_stack: Stack, secrets: dict[str, str]
) -> None:
    old = migration.secret(secrets["APP"])["password"]
    assert log_in_through_pooler(own_stack, old) == roles.APP
    rotate(secrets["APP"])
    # Without a stage, moto returns the version that was current first.
    new = migration.secret(secrets["APP"], VersionStage="AWSCURRENT")["password"]
    assert new != old
    assert len(new) == 40
    assert log_in_through_pooler(own_stack, new) == roles.APP
    with pytest.raises(asyncpg.PostgresError, match="SASL authentication failed"):
        log_in_through_pooler(own_stack, old)
    logs = own_stack.postgres.log_since_start() + own_stack.pgbouncer.log_since_start()
    assert new not in logs
    assert old not in logs


def test_the_check_reports_role_changes_and_changes_nothing(
    own_stack: Stack, secrets: dict[str, str], cloudformation: CloudFormation
) -> None:
    check = {"RequestType": "Check"}
    assert migration.handler(check, None) == {"differences": []}
    execute(own_stack, "ALTER ROLE appuser SET default_transaction_read_only = on")
    for _ in range(2):
        [difference] = migration.handler(check, None)["differences"]
        assert "default_transaction_read_only is on" in difference
    assert cloudformation.responses == []


def test_the_container_check_prints_role_changes(
    own_stack: Stack,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("SECRETS", str(tmp_path))
    monkeypatch.setenv("DB_HOST", own_stack.postgres.host)
    monkeypatch.setenv("DB_PORT", str(own_stack.postgres.port))
    monkeypatch.setattr(sys, "argv", ["infra.database", "check"])
    # The lab's Postgres has no TLS on localhost.
    monkeypatch.setattr(database, "administrator", lambda _: own_stack.postgres.admin)
    assert database.main() == 0
    assert capsys.readouterr().out == ""
    execute(own_stack, "ALTER ROLE appuser SET default_transaction_read_only = on")
    assert database.main() == 1
    assert "default_transaction_read_only is on" in capsys.readouterr().out


def test_the_task_runs_a_statement_as_administrator_and_prints_rows(
    secrets: dict[str, str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def administer(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["migration", *words])
        return migration.main(), *capsys.readouterr()

    statement = "SELECT current_user AS who, 'a, b' AS text"
    assert administer(statement) == (0, f'who,text\r\n{ADMIN},"a, b"\r\nSELECT 1\n', "")
    # This statement is not allowed in a transaction.
    index = "CREATE INDEX CONCURRENTLY by_name ON orders (customer_name)"
    assert administer(index) == (0, "CREATE INDEX\n", "")
    code, rows, error = administer("SELECT * FROM nowhere")
    assert (code, rows) == (1, "")
    assert error == 'UndefinedTableError: relation "nowhere" does not exist\n'
    monkeypatch.delenv("DB_HOST")
    code, rows, error = administer("SELECT 1")
    assert (code, rows, error.count("\n")) == (1, "", 1)
    assert error.startswith("SettingsError: DB_HOST: unset")


def test_the_task_without_a_statement_migrates(
    own_stack: Stack, secrets: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(own_stack, "DROP TABLE orders, order_requests, alembic_version CASCADE")
    for name in execute(own_stack, PLACE_ORDER):
        execute(own_stack, f"DROP FUNCTION {name}")
    monkeypatch.setattr(sys, "argv", ["migration"])
    assert migration.main() == 0
    assert execute(own_stack, "SELECT count(*) FROM orders") == 0


def test_rows_are_copied_with_the_documented_statements(
    own_stack: Stack,
    secrets: dict[str, str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def administer(statement: str) -> str:
        monkeypatch.setattr(sys, "argv", ["migration", statement])
        assert migration.main() == 0
        return capsys.readouterr().out

    text = (ROOT / "docs/aws-maintenance.md").read_text()
    read, write = re.findall(r'make administer STACK=\S+ SQL="(.*(?:json_agg|recordset).*)"', text)
    execute(own_stack, """UPDATE orders SET customer_name = 'O''Hara "$5", Zoë' WHERE id = 17""")
    rows = "SELECT json_agg(o)::text FROM (SELECT * FROM orders WHERE id IN (17, 18) ORDER BY id) o"
    before = execute(own_stack, rows)
    copy = administer(read).splitlines()[1]
    assert copy.isalnum()  # a shell and make leave it unchanged
    administer("DELETE FROM orders WHERE id IN (17, 18)")
    administer(write.replace("…", copy))
    assert execute(own_stack, rows) == before
