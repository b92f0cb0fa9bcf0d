"""Prepares the database before a new version starts: roles, the pooler's lookup, migrations.

`handler` is the Lambda function of a CloudFormation custom resource. `main` runs in a Fargate task:
`python -m infra.aws.migration` migrates where that takes longer than Lambda allows, and with an
argument `SQL` it runs that statement as the administrator. Migrations can be repeated.
`infra.database` defines roles and tables, and `rotation` changes passwords.
"""

import asyncio
import csv
import json
import logging
import os
import ssl
import sys
import urllib.request
from typing import Any

import asyncpg
import boto3
from botocore.exceptions import BotoCoreError, ClientError

from handler.warm.settings import Settings, SettingsError, load_settings
from infra.database import roles, schema
from infra.database.check import differences

log = logging.getLogger(__name__)


def secret(arn: str, **version: str) -> dict[str, str]:
    """Return the fields of a secret: `username` and `password`. `version`: boto3's VersionId
    or VersionStage."""
    response = boto3.client("secretsmanager").get_secret_value(SecretId=arn, **version)
    fields: dict[str, str] = json.loads(response["SecretString"])
    return fields


def settings(user: str = roles.OWNER, password: str = "") -> Settings:
    """Return the settings from the environment variables, with this user and password.

    Even an empty password is set explicitly, because on Lambda the settings reject an unset one.
    """
    return load_settings(user=user, password=password)


def connect_arguments(user: str, password: str) -> dict[str, Any]:
    """Return the arguments of `asyncpg.connect` for `user`, without `database`."""
    server = settings()
    tls: ssl.SSLContext | bool = False
    if server.effective_sslmode != "disable":
        tls = ssl.create_default_context(cafile=server.sslrootcert)
    return {
        "host": server.host,
        "port": server.port,
        "user": user,
        "password": password,
        "ssl": tls,
        "timeout": 10,
    }


def administrator_arguments() -> dict[str, Any]:
    admin = secret(os.environ["ADMIN_SECRET_ARN"])
    return connect_arguments(admin["username"], admin["password"])


async def check() -> list[str]:
    return await differences(administrator_arguments(), settings().name)


async def migrate() -> None:
    passwords = {
        roles.OWNER: secret(os.environ["OWNER_SECRET_ARN"])["password"],
        roles.APP: secret(os.environ["APP_SECRET_ARN"])["password"],
        roles.LOOKUP: secret(os.environ["LOOKUP_SECRET_ARN"])["password"],
    }
    await roles.bootstrap(administrator_arguments(), settings().name, passwords)
    await schema.migrate(settings(roles.OWNER, passwords[roles.OWNER]))


def handler(event: dict[str, Any], context: Any) -> Any:
    """Migrate for the request types Create and Update, and do nothing for Delete.

    `{"RequestType": "Check"}` returns how the roles differ from their definition.
    """
    if event["RequestType"] == "Check":
        return {"differences": asyncio.run(check())}
    reason = ""
    try:
        if event["RequestType"] != "Delete":
            asyncio.run(migrate())
    except Exception as error:
        log.exception("the migration failed")
        # The stack's events must not show the error's text, which may contain a row.
        reason = f"{type(error).__name__}: see the function's log"
    response = {
        "Status": "FAILED" if reason else "SUCCESS",
        "Reason": reason,
        "PhysicalResourceId": event.get("PhysicalResourceId", "migration"),
        **{key: event[key] for key in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = urllib.request.Request(  # noqa: S310  # an https URL from CloudFormation
        event["ResponseURL"], json.dumps(response).encode(), {"Content-Type": ""}, method="PUT"
    )
    # Without a response CloudFormation waits until the resource's ServiceTimeout has passed.
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310  # as above
    return None


async def run(statement: str) -> None:
    """Run one statement as the administrator, outside a transaction, and print its rows as CSV."""
    connection = await asyncpg.connect(**administrator_arguments(), database=settings().name)
    try:
        prepared = await connection.prepare(statement)
        rows = await prepared.fetch()
        if columns := [attribute.name for attribute in prepared.get_attributes()]:
            csv.writer(sys.stdout).writerows([columns, *rows])
        print(prepared.get_statusmsg())
    finally:
        await connection.close()


def main() -> int:
    try:
        asyncio.run(run(sys.argv[1]) if sys.argv[1:] else migrate())
    except (
        SettingsError,
        roles.ForeignRoleError,
        asyncpg.PostgresError,
        BotoCoreError,
        ClientError,
        OSError,
    ) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
