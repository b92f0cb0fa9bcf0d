"""A new password for the application, each month: what Secrets Manager calls, in four steps.

Owns when the password changes. Leaves how to `roles.set_password`, which tells Postgres and the
pooler's lookup at the same instant. On RDS nobody may read `pg_authid`, so a password changed in
any other way (ALTER ROLE by hand, RDS's own rotation) is one that PgBouncer never hears of.
"""

import asyncio
import contextlib
import json
import logging
from typing import Any

import asyncpg
import boto3

from handler.settings import load
from infra.aws.migration import administrator, arguments, secret
from infra.database import roles

log = logging.getLogger(__name__)


def handler(event: dict[str, str], context: Any) -> None:
    arn, token, step = event["SecretId"], event["ClientRequestToken"], event["Step"]
    versions = boto3.client("secretsmanager").describe_secret(SecretId=arn)["VersionIdsToStages"]
    if "AWSCURRENT" in versions.get(token, []):
        return  # done, and called once more
    if step == "createSecret":
        create(arn, token)
    elif step == "finishSecret":
        finish(arn, token, versions)
    # setSecret and testSecret: nothing. Between the password's change and the label's, a new
    # connection with the old one is refused; done in one step that is some ten milliseconds.


def create(arn: str, token: str) -> None:
    client = boto3.client("secretsmanager")
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        secret(arn, VersionId=token, VersionStage="AWSPENDING")
        return  # made by an earlier try, and maybe in use already
    password = client.get_random_password(PasswordLength=40, ExcludeCharacters='"')
    pending = {**secret(arn), "password": password["RandomPassword"]}
    client.put_secret_value(
        SecretId=arn,
        ClientRequestToken=token,
        SecretString=json.dumps(pending),
        VersionStages=["AWSPENDING"],
    )


def finish(arn: str, token: str, versions: dict[str, list[str]]) -> None:
    new = secret(arn, VersionId=token, VersionStage="AWSPENDING")["password"]
    current = next(version for version, stages in versions.items() if "AWSCURRENT" in stages)
    asyncio.run(change(new))
    boto3.client("secretsmanager").update_secret_version_stage(
        SecretId=arn,
        VersionStage="AWSCURRENT",
        MoveToVersionId=token,
        RemoveFromVersionId=current,
    )
    log.info("the application's password is a new one")


async def change(password: str) -> None:
    connection = await asyncpg.connect(**administrator(), database=load().name)
    try:
        await roles.set_password(connection, roles.APP, password)
    finally:
        await connection.close()
    if not await opens(roles.APP, password):
        raise RuntimeError("Postgres does not take the new password")


async def opens(user: str, password: str) -> bool:
    """Whether `password` lets `user` in."""
    try:
        connection = await asyncpg.connect(**arguments(user, password), database=load().name)
    except (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError):
        return False
    await connection.close()
    return True
