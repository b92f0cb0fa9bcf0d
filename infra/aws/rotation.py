"""The function that Secrets Manager calls to rotate the application's or the owner's password.

`roles.set_password` changes the password in Postgres and, for the application, in PgBouncer's
lookup, in one transaction.
PgBouncer would not learn of a password that is changed in any other way (ALTER ROLE, RDS's own
rotation), because on RDS no role may read `pg_authid`.
"""

import asyncio
import contextlib
import json
import logging
from typing import Any

import asyncpg
import boto3

from infra.aws.migration import administrator_arguments, connect_arguments, secret, settings
from infra.database import roles

log = logging.getLogger(__name__)


def handler(event: dict[str, str], context: Any) -> None:
    arn, token, step = event["SecretId"], event["ClientRequestToken"], event["Step"]
    versions = boto3.client("secretsmanager").describe_secret(SecretId=arn)["VersionIdsToStages"]
    if "AWSCURRENT" in versions.get(token, []):
        return  # a repeated call
    if step == "createSecret":
        create_secret(arn, token)
    elif step == "finishSecret":
        finish_secret(arn, token, versions)
    # setSecret and testSecret do nothing: finishSecret changes the password itself, so that
    # little time passes between the change and the move of AWSCURRENT.


def create_secret(arn: str, token: str) -> None:
    client = boto3.client("secretsmanager")
    with contextlib.suppress(client.exceptions.ResourceNotFoundException):
        secret(arn, VersionId=token, VersionStage="AWSPENDING")
        return  # created by an earlier attempt; Postgres may already have this password
    response = client.get_random_password(PasswordLength=40, ExcludeCharacters='"')
    pending = {**secret(arn), "password": response["RandomPassword"]}
    client.put_secret_value(
        SecretId=arn,
        ClientRequestToken=token,
        SecretString=json.dumps(pending),
        VersionStages=["AWSPENDING"],
    )


def finish_secret(arn: str, token: str, versions: dict[str, list[str]]) -> None:
    pending = secret(arn, VersionId=token, VersionStage="AWSPENDING")
    current = next(version for version, stages in versions.items() if "AWSCURRENT" in stages)
    asyncio.run(change_password(pending["username"], pending["password"]))
    boto3.client("secretsmanager").update_secret_version_stage(
        SecretId=arn,
        VersionStage="AWSCURRENT",
        MoveToVersionId=token,
        RemoveFromVersionId=current,
    )
    log.info("the password of %s was changed", pending["username"])


async def change_password(role: str, password: str) -> None:
    """Change the password of `role` in Postgres, and check that it is accepted."""
    if role not in (roles.APP, roles.OWNER):
        # Otherwise, anyone who may change the secret could change any role's password.
        raise ValueError(f"the secret's username is neither {roles.APP} nor {roles.OWNER}")
    connection = await asyncpg.connect(**administrator_arguments(), database=settings().name)
    try:
        await roles.set_password(connection, role, password, through_pooler=role == roles.APP)
    finally:
        await connection.close()
    if not await is_password_accepted(role, password):
        raise RuntimeError("Postgres does not accept the new password")


async def is_password_accepted(user: str, password: str) -> bool:
    """Return whether Postgres accepts `password` for `user`, even while the role is NOLOGIN."""
    try:
        connection = await asyncpg.connect(
            **connect_arguments(user, password), database=settings().name
        )
    except asyncpg.InvalidAuthorizationSpecificationError as error:
        # Postgres checks the password before the attribute LOGIN, so the password is right.
        return "is not permitted to log in" in str(error)
    await connection.close()
    return True
