"""Identity: the caller that API Gateway or a function URL has authenticated.

Authorization is left to the gateway.
"""

import hashlib
from collections.abc import Mapping
from typing import Any

#: A longer identity is replaced by its digest: it is part of log lines and idempotency keys.
MAX_LENGTH = 255


def of(event: Mapping[str, Any], claim: str) -> str | None:
    """Return a text that identifies the caller in every request, or None if unauthenticated.

    From a JWT: issuer and subject. From IAM: account and role or user, or the Cognito identity.
    From a Lambda authorizer: its principal. `claim` (`API_CALLER_CLAIM`) names another field of the
    JWT or of the authorizer's context.
    """
    context = event["requestContext"]
    authorizer = _object(context, "authorizer")
    if not authorizer and "identity" not in context:
        return None
    # Payload 2.0, then 1.0 and REST APIs.
    claims = _object(_object(authorizer, "jwt"), "claims") or _object(authorizer, "claims")
    if claims:
        return _text("jwt", claims.get("iss"), claims.get(claim or "sub"))
    signer = _object(authorizer, "iam") or _object(context, "identity")
    if arn := signer.get("userArn"):  # in `identity` only for IAM
        cognito = _object(signer, "cognitoIdentity").get("identityId")
        return _text("iam", _without_session(arn), cognito or signer.get("cognitoIdentityId") or "")
    named = _object(authorizer, "lambda") or authorizer
    return _text("authorizer", named.get(claim or "principalId"))


def _object(outer: Mapping[str, object], name: str) -> Mapping[str, Any]:
    """Return the nested object with that name, or an empty one."""
    inner = outer.get(name)
    return inner if isinstance(inner, dict) else {}


def _without_session(arn: str) -> str:
    """Drop the session name of an assumed role, which differs in each task or function."""
    return arn.rpartition("/")[0] if ":assumed-role/" in arn else arn


def _text(kind: str, *parts: object) -> str | None:
    """Join the parts to one text; None if one is missing."""
    if None in parts:
        return None
    # Escaped, so that callers cannot get the same text, or one that Postgres cannot store.
    text = " ".join([kind, *(ascii(str(part))[1:-1].replace(" ", "\\x20") for part in parts)])
    if len(text) > MAX_LENGTH:
        text = f"{kind} sha256:{hashlib.sha256(text.encode()).hexdigest()}"
    return text.rstrip()
