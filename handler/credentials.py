"""Where a login comes from: `DB_PASS`, a secret that rotates, or a token of fifteen minutes.

Asked for each new raw connection, so that a password is never older than what it opens. What speaks
to AWS is imported where it is used: Lambda's base image has botocore, elsewhere it is installed.
"""

import asyncio
import contextlib
import json
from collections.abc import Awaitable, Callable
from threading import Lock
from typing import Any, cast
from urllib.parse import urlencode

from handler.failures import CredentialsError
from handler.settings import Settings, SettingsError

Login = tuple[str, str]  # user and password
#: The login for a new connection; given one that was just refused, another where there is one, else
#: the same. Raises CredentialsError.
Credentials = Callable[[Login | None], Awaitable[Login]]


def from_settings(settings: Settings) -> Credentials:
    """The source that `settings` names. Nothing is asked of it yet. Raises SettingsError."""
    if settings.auth == "password":
        return lambda _: _fixed((settings.user, settings.password.get_secret_value()))
    try:  # now, in the init phase: it takes 0.2 s of a whole processor
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.session import get_session
    except ImportError:
        fault = f"DB_AUTH is {settings.auth!r}: there is no botocore. Install boto3"
        raise SettingsError(fault) from None
    blocking = (_secret if settings.auth == "secret" else _token)(settings, get_session())

    async def login(refused: Login | None) -> Login:
        try:  # on a thread: botocore blocks, and the loop could keep no deadline
            async with asyncio.timeout(settings.connect_timeout):
                return await asyncio.to_thread(blocking, refused)
        except ClientError as error:
            # The code alone: the text of a signature's error quotes the session token.
            raise CredentialsError(error.response["Error"]["Code"]) from None
        except (BotoCoreError, TimeoutError) as error:
            raise CredentialsError(type(error).__name__) from None

    return login


async def _fixed(login: Login) -> Login:
    return login


def _secret(settings: Settings, session: Any) -> Callable[[Login | None], Login]:
    """A secret of RDS's shape, read once and kept until the server refuses what it says."""
    from botocore.config import Config
    from botocore.exceptions import ClientError

    arn, client, known = str(settings.secret_arn), cast(Any, None), cast(Login, None)
    alone = Lock()  # of ten connections that are refused at once, one reads it again
    seconds = settings.connect_timeout
    config = Config(connect_timeout=seconds, read_timeout=seconds, retries={"max_attempts": 1})

    def read(stage: str) -> Login:
        nonlocal client
        if client is None:  # in the ARN's region: the function's may be another
            client = session.create_client("secretsmanager", arn.split(":")[3], config=config)
        found = client.get_secret_value(SecretId=arn, VersionStage=stage)
        try:
            said = json.loads(found["SecretString"])
            return str(said.get("username", settings.user)), str(said["password"])
        except (AttributeError, KeyError, ValueError):
            raise CredentialsError("the secret is no JSON with a password") from None

    def login(refused: Login | None) -> Login:
        nonlocal known
        with alone:
            if known is None or known == refused:
                known = read("AWSCURRENT")
            if known == refused:
                # A rotation changes the password first and the label after it.
                with contextlib.suppress(ClientError):  # none is under way
                    known = read("AWSPENDING")
            return known

    return login


def _token(settings: Settings, session: Any) -> Callable[[Login | None], Login]:
    """RDS's tokens, each for one connection: an address, signed here in a millisecond. One that
    were kept would open nothing after 15 minutes."""
    from botocore.auth import SigV4QueryAuth
    from botocore.awsrequest import AWSRequest
    from botocore.exceptions import NoRegionError

    asked = urlencode({"Action": "connect", "DBUser": settings.user})
    address = f"https://{settings.host}:{settings.port}/?{asked}"

    def login(refused: Login | None) -> Login:
        if refused:
            return refused  # it was new: a newer one is no better
        region, keys = session.get_config_variable("region"), session.get_credentials()
        if not region:
            raise NoRegionError
        # As boto3's generate_db_auth_token, without loading what else RDS can do (0.3 s).
        request = AWSRequest("GET", address)
        frozen = keys and keys.get_frozen_credentials()
        SigV4QueryAuth(frozen, "rds-db", region, expires=900).add_auth(request)
        return settings.user, str(request.url).removeprefix("https://")

    return login
