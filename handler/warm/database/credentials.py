"""Credentials: `DB_PASS`, a secret of Secrets Manager, or an IAM token.

Fetched for each new connection, so that a rotated password is used. botocore is imported where it
is needed: Lambda's base image contains it, elsewhere it is optional.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any, cast
from urllib.parse import urlencode

from handler.warm.errors import CredentialsError
from handler.warm.settings import Settings, SettingsError

Login = tuple[str, str]  # user and password
#: Returns the login for a new connection. Called with a login that was just rejected, it returns a
#: different one if there is one, else the same. Raises CredentialsError.
Credentials = Callable[[Login | None], Awaitable[Login]]


def from_settings(settings: Settings) -> Credentials:
    """Return the source that `settings` selects, without fetching. Raises SettingsError."""
    if settings.auth == "password":
        return lambda _: _fixed((settings.user, settings.password.get_secret_value()))
    try:  # in the init phase, because the import takes 0.2 s of CPU
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.session import get_session
    except ImportError:
        fault = f"DB_AUTH is {settings.auth!r}: botocore is not installed. Install boto3"
        raise SettingsError(fault) from None
    blocking = (_secret if settings.auth == "secret" else _token)(settings, get_session())

    async def login(refused: Login | None) -> Login:
        try:  # on a thread, because botocore would block the loop
            async with asyncio.timeout(settings.connect_timeout):
                return await asyncio.to_thread(blocking, refused)
        except ClientError as error:
            # Only the code: the text of a signature error contains the session token.
            raise CredentialsError(error.response["Error"]["Code"]) from None
        except (BotoCoreError, TimeoutError) as error:
            raise CredentialsError(type(error).__name__) from None

    return login


async def _fixed(login: Login) -> Login:
    return login


def _secret(settings: Settings, session: Any) -> Callable[[Login | None], Login]:
    """Return a reader of a secret in RDS's format, cached until the server rejects the login."""
    from botocore.config import Config
    from botocore.exceptions import ClientError

    arn, client, cached = str(settings.secret_arn), cast(Any, None), cast(Login, None)
    lock = Lock()  # of several rejected connections only one reads the secret again
    seconds = settings.connect_timeout
    config = Config(connect_timeout=seconds, read_timeout=seconds, retries={"max_attempts": 1})

    def read(stage: str) -> Login:
        nonlocal client
        if client is None:  # in the region of the ARN, which may not be the function's
            client = session.create_client("secretsmanager", arn.split(":")[3], config=config)
        response = client.get_secret_value(SecretId=arn, VersionStage=stage)
        try:
            secret = json.loads(response["SecretString"])
            return str(secret.get("username", settings.user)), str(secret["password"])
        except (AttributeError, KeyError, ValueError):
            raise CredentialsError("the secret is not JSON with a password") from None

    def login(refused: Login | None) -> Login:
        nonlocal cached
        with lock:
            if cached is None or cached == refused:
                cached = read("AWSCURRENT")
            if cached == refused:
                # A rotation changes the password before it moves the label AWSCURRENT.
                with contextlib.suppress(ClientError):  # no rotation in progress
                    cached = read("AWSPENDING")
            return cached

    return login


def _token(settings: Settings, session: Any) -> Callable[[Login | None], Login]:
    """Return a source of RDS tokens, signed locally in 1 ms for each connection, because a token
    expires after 15 minutes."""
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import NoRegionError

    query = urlencode({"Action": "connect", "DBUser": settings.user})
    address = f"https://{settings.host}:{settings.port}/?{query}"

    def login(refused: Login | None) -> Login:
        if refused:
            return refused  # it was new, another token would not help
        region, keys = session.get_config_variable("region"), session.get_credentials()
        if not region:
            raise NoRegionError
        # Like boto3's generate_db_auth_token, without loading the RDS service model (0.3 s).
        request = AWSRequest("GET", address)
        frozen = keys and keys.get_frozen_credentials()
        SigV4QueryAuth(frozen, "rds-db", region, expires=900).add_auth(request)
        return settings.user, str(request.url).removeprefix("https://")

    return login
