"""What CloudFormation calls before a new version: roles, the pooler's lookup, migrations.

`handler` is a Lambda function's, for a custom resource: it answers to the address in the event.
Safe to run again: it mends what is not as it should be; a password that holds keeps its verifier.
Leaves what roles and tables are to `infra.database`, and the application's next password to
`rotation`.
"""

import asyncio
import json
import logging
import os
import ssl
import urllib.request
from typing import Any

import boto3

from handler.settings import load
from infra.database import roles, schema

log = logging.getLogger(__name__)


def secret(arn: str, **which: str) -> dict[str, str]:
    """The JSON of a secret: `username`, `password`."""
    value = boto3.client("secretsmanager").get_secret_value(SecretId=arn, **which)
    fields: dict[str, str] = json.loads(value["SecretString"])
    return fields


def arguments(user: str, password: str) -> dict[str, Any]:
    """asyncpg's, for `user`, at the database of the environment and without its name."""
    settings = load()
    tls: ssl.SSLContext | bool = False
    if settings.effective_sslmode != "disable":
        tls = ssl.create_default_context(cafile=settings.sslrootcert)
    return {
        "host": settings.host,
        "port": settings.port,
        "user": user,
        "password": password,
        "ssl": tls,
        "timeout": 10,
    }


def administrator() -> dict[str, Any]:
    admin = secret(os.environ["ADMIN_SECRET_ARN"])
    return arguments(admin["username"], admin["password"])


async def migrate() -> None:
    passwords = {
        roles.OWNER: secret(os.environ["OWNER_SECRET_ARN"])["password"],
        roles.APP: secret(os.environ["APP_SECRET_ARN"])["password"],
        roles.LOOKUP: secret(os.environ["LOOKUP_SECRET_ARN"])["password"],
    }
    await roles.bootstrap(administrator(), load().name, passwords)
    await schema.migrate(load(user=roles.OWNER, password=passwords[roles.OWNER]))


def handler(event: dict[str, Any], context: Any) -> None:
    """Create and Update migrate; Delete leaves the database as it is."""
    reason = ""
    try:
        if event["RequestType"] != "Delete":
            asyncio.run(migrate())
    except Exception as error:
        log.exception("the migration failed")
        # Anybody who may look at the stack reads this; an error's own text may quote a row.
        reason = f"{type(error).__name__}: see the function's log"
    answer = {
        "Status": "FAILED" if reason else "SUCCESS",
        "Reason": reason,
        "PhysicalResourceId": event.get("PhysicalResourceId", "migration"),
        **{key: event[key] for key in ("StackId", "RequestId", "LogicalResourceId")},
    }
    request = urllib.request.Request(  # noqa: S310  # an https address, by CloudFormation
        event["ResponseURL"], json.dumps(answer).encode(), {"Content-Type": ""}, method="PUT"
    )
    # Unanswered, CloudFormation would wait until the resource's ServiceTimeout.
    urllib.request.urlopen(request, timeout=30).close()  # noqa: S310  # as above
