"""Migrations and a new password on a managed database: no superuser, no look at `pg_authid`."""

import asyncio
import http.server
import json
import threading
from collections.abc import Iterator
from typing import Any

import asyncpg
import boto3
import pytest

from infra.aws import migration, rotation
from infra.database import roles
from infra.local.postgres import ADMIN
from infra.local.stack import DATABASE, Stack
from tests.conftest import let_go
from tests.integration import test_roles

Answers = list[dict[str, Any]]


@pytest.fixture
def cloudformation() -> Iterator[tuple[str, Answers]]:
    """The address that CloudFormation gives for the answer, and the answers that it got."""
    answers: Answers = []

    class Address(http.server.BaseHTTPRequestHandler):
        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            answers.append(json.loads(body))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Address)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/answer", answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def secrets(aws: str, own_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Role → ARN, and an environment as migration.yaml gives it."""
    client = boto3.client("secretsmanager")
    passwords = {
        "ADMIN": (ADMIN, own_stack.postgres.password),
        "OWNER": (roles.OWNER, own_stack.settings(user=roles.OWNER).password.get_secret_value()),
        "APP": (roles.APP, own_stack.settings().password.get_secret_value()),
        "LOOKUP": (roles.LOOKUP, own_stack.settings(user=roles.LOOKUP).password.get_secret_value()),
    }
    arns = {}
    for name, (user, password) in passwords.items():
        text = json.dumps({"username": user, "password": password})
        arns[name] = client.create_secret(Name=name, SecretString=text)["ARN"]
        monkeypatch.setenv(f"{name}_SECRET_ARN", arns[name])
    monkeypatch.setenv("DB_HOST", own_stack.postgres.host)
    monkeypatch.setenv("DB_PORT", str(own_stack.postgres.port))
    monkeypatch.setenv("DB_NAME", DATABASE)
    return arns


def event(kind: str, url: str) -> dict[str, Any]:
    names = ("StackId", "RequestId", "LogicalResourceId")
    return {"RequestType": kind, "ResponseURL": url, **{name: name.lower() for name in names}}


def verifier(stack: Stack) -> str:
    async def ask() -> str:
        admin = await asyncpg.connect(**stack.postgres.admin, database=DATABASE)
        try:
            return str(await admin.fetchval("SELECT verifier FROM pooler.verifiers"))
        finally:
            await admin.close()

    return asyncio.run(ask())


def through_pooler(stack: Stack, password: str) -> str:
    async def ask() -> str:
        try:
            return await test_roles.through_pooler(stack, password)
        finally:
            await let_go()

    return asyncio.run(ask())


def test_an_empty_database_gets_roles_lookup_and_tables_and_cloudformation_hears_of_it(
    own_stack: Stack, secrets: dict[str, str], cloudformation: tuple[str, Answers]
) -> None:
    async def empty() -> None:
        admin = await asyncpg.connect(**own_stack.postgres.admin, database="postgres")
        await admin.execute(f"DROP DATABASE {DATABASE} WITH (FORCE)")
        for role in (roles.APP, roles.LOOKUP, roles.OWNER):
            await admin.execute(f"DROP ROLE {role}")
        await admin.close()

    asyncio.run(empty())
    url, answers = cloudformation
    migration.handler(event("Create", url), None)
    assert answers == [
        {
            "Status": "SUCCESS",
            "Reason": "",
            "PhysicalResourceId": "migration",
            "StackId": "stackid",
            "RequestId": "requestid",
            "LogicalResourceId": "logicalresourceid",
        }
    ]
    assert through_pooler(own_stack, migration.secret(secrets["APP"])["password"]) == roles.APP


def test_an_update_changes_no_password_that_holds(
    own_stack: Stack, secrets: dict[str, str], cloudformation: tuple[str, Answers]
) -> None:
    """A new salt alone would lock PgBouncer out of Postgres until another client logs in."""
    before = verifier(own_stack)
    url, answers = cloudformation
    migration.handler(event("Update", url), None)
    assert answers[0]["Status"] == "SUCCESS"
    assert verifier(own_stack) == before


def test_a_migration_that_fails_is_answered_at_once_and_tells_no_secret(
    own_stack: Stack,
    secrets: dict[str, str],
    cloudformation: tuple[str, Answers],
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong = json.dumps({"username": ADMIN, "password": "hunter2"})
    boto3.client("secretsmanager").put_secret_value(SecretId=secrets["ADMIN"], SecretString=wrong)
    url, answers = cloudformation
    migration.handler(event("Update", url), None)
    assert answers[0]["Status"] == "FAILED"
    assert answers[0]["Reason"].startswith("InvalidPasswordError")
    assert "hunter2" not in str(answers) + caplog.text


def test_when_the_stack_goes_the_database_stays_as_it_is(
    secrets: dict[str, str], cloudformation: tuple[str, Answers], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(migration, "migrate")
    url, answers = cloudformation
    migration.handler(event("Delete", url), None)
    assert answers[0]["Status"] == "SUCCESS"


def test_a_rotated_password_opens_the_pooler_and_the_old_one_does_not(
    own_stack: Stack, secrets: dict[str, str]
) -> None:
    old = migration.secret(secrets["APP"])["password"]
    assert through_pooler(own_stack, old) == roles.APP
    token = "9c2b8f0e-6a53-4d1f-8e7b-5b1c6f0a2d34"
    for step in ("createSecret", "setSecret", "testSecret", "finishSecret", "finishSecret"):
        rotation.handler(
            {"SecretId": secrets["APP"], "ClientRequestToken": token, "Step": step}, None
        )
    # Without naming the stage moto reads the version that was current at first.
    new = migration.secret(secrets["APP"], VersionStage="AWSCURRENT")["password"]
    assert new != old
    assert len(new) == 40
    assert through_pooler(own_stack, new) == roles.APP
    with pytest.raises(asyncpg.PostgresError, match="SASL authentication failed"):
        through_pooler(own_stack, old)
    said = own_stack.postgres.said() + own_stack.pgbouncer.said()
    assert new not in said
    assert old not in said
