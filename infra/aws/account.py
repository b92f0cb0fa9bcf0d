"""The AWS account and region of the commands, and how they report errors.

The region is resolved once for boto3, SAM and the AWS CLI. botocore provides the credentials.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from dataclasses import dataclass

import boto3
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    CredentialRetrievalError,
    NoCredentialsError,
    PartialCredentialsError,
    ProfileNotFound,
    SSOError,
    TokenRetrievalError,
)

from infra.aws.closed_pipe import stop_at_closed_pipe

#: Error codes for expired or invalid credentials.
_REJECTED = {
    "AuthFailure",
    "ExpiredToken",
    "ExpiredTokenException",
    "InvalidClientTokenId",
    "SignatureDoesNotMatch",
    "UnrecognizedClientException",
}
#: Error codes for a missing permission; the last is that of SNS.
_DENIED = {
    "AccessDenied",
    "AccessDeniedException",
    "UnauthorizedOperation",
    "AuthorizationError",
}


class OperatorError(Exception):
    """A problem, and what the operator can do about it."""


@dataclass(frozen=True)
class Account:
    """The identity, account number and region that a command works with."""

    session: boto3.Session
    region: str
    number: str
    arn: str


def resolve_region() -> str:
    """Return the region, and set it for all child processes. Raises OperatorError if there is none.

    AWS_REGION takes precedence, as in the AWS CLI. botocore and SAM read only AWS_DEFAULT_REGION,
    and without it would use the profile's region.
    """
    from_environment = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    session = boto3.Session()
    region = from_environment or session.region_name
    if not region:
        raise OperatorError("no AWS region. Set one: export AWS_REGION=eu-central-1")
    if region not in session.get_available_regions("lambda"):
        raise OperatorError(f"there is no region {region}. Set one: export AWS_REGION=eu-central-1")
    os.environ.update(AWS_REGION=region, AWS_DEFAULT_REGION=region)
    return region


def identify() -> Account:
    """Return the account of the credentials. Raises OperatorError if they cannot be used."""
    try:
        region = resolve_region()
        session = boto3.Session(region_name=region)
        caller = session.client("sts").get_caller_identity()
    except (BotoCoreError, ClientError) as error:
        raise OperatorError(explain(error)) from None
    return Account(session, region, caller["Account"], caller["Arn"])


def error_code(error: ClientError) -> str:
    return str(error.response.get("Error", {}).get("Code", ""))


def is_denied(error: ClientError) -> bool:
    return error_code(error) in _DENIED


def explain(error: BotoCoreError | ClientError) -> str:
    """Return the error, and what to do about it if that is known, in one line."""
    if isinstance(error, NoCredentialsError | PartialCredentialsError):
        return (
            "no AWS credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "with single sign-on run `aws sso login` first"
        )
    if isinstance(error, ProfileNotFound):
        return f"{error}. Set AWS_PROFILE to one that `aws configure list-profiles` names"
    if isinstance(error, SSOError | TokenRetrievalError | CredentialRetrievalError):
        return f"the AWS credentials cannot be read: {one_line(error)}. Run `aws sso login`"
    if isinstance(error, ClientError) and error_code(error) in _REJECTED:
        return f"AWS refuses the credentials ({error_code(error)}). Renew them: `aws sso login`"
    return one_line(error)


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def command(name: str, work: Callable[[], int]) -> int:
    """Run the `work` of the command `name` and return its exit status.

    An expected error is printed in one line, with exit status 1.
    """
    return stop_at_closed_pipe(lambda: _with_errors_in_one_line(name, work))


def _with_errors_in_one_line(name: str, work: Callable[[], int]) -> int:
    try:
        return work()
    except BrokenPipeError:
        raise  # an OSError, but of the output
    except OperatorError as error:
        reason = str(error)
    except (BotoCoreError, ClientError) as error:
        reason = explain(error)
    except OSError as error:
        reason = one_line(error)
    except KeyboardInterrupt:
        return 130
    print(f"{name}: {reason}", file=sys.stderr)
    return 1
