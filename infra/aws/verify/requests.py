"""Sends requests to the deployment, with or without authentication."""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from typing import Any

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest

from infra.aws.account import OperatorError
from infra.aws.verify.deployment import Deployment

#: In seconds. Above the limit of API Gateway, whose error response says more than a timeout.
TIMEOUT = 35


@dataclass(frozen=True)
class Response:
    """An HTTP response. Status 0 means that there was none; `body` then says why."""

    status: int
    headers: dict[str, str]
    body: str
    ms: float

    def json(self) -> Any:
        try:
            return json.loads(self.body)
        except ValueError:
            return {}


def cannot_sign(deployment: Deployment) -> str:
    """Return why requests cannot be authenticated, or an empty string."""
    if deployment.authorization == "JWT" and not deployment.token:
        return "Authorization=JWT: set TOKEN to a token of the issuer"
    return ""


def send(
    deployment: Deployment,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    signed: bool = True,
    **headers: str,
) -> Response:
    """Send a GET or, with a body, a POST. `_` in a header name becomes `-`."""
    data = None if body is None else json.dumps(body).encode()
    headers_to_send = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        headers_to_send["Content-Type"] = "application/json"
    method, url = "GET" if data is None else "POST", deployment.url + path
    if signed and deployment.authorization == "IAM":
        headers_to_send = _sign(deployment, method, url, data, headers_to_send)
    elif signed and deployment.authorization == "JWT":
        headers_to_send["Authorization"] = f"Bearer {deployment.token}"
    request = urllib.request.Request(url, data, headers_to_send, method=method)  # noqa: S310  # the stack's
    started = time.perf_counter()
    try:
        with urllib.request.urlopen(request, timeout=TIMEOUT) as response:  # noqa: S310  # the same
            status, headers_received, content = (
                response.status,
                response.headers,
                response.read(),
            )
    except urllib.error.HTTPError as error:
        status, headers_received, content = error.code, error.headers, error.read()
    except (OSError, http.client.HTTPException) as error:
        return Response(0, {}, f"no response: {error}", 0)
    ms = (time.perf_counter() - started) * 1000
    lower_case = {name.lower(): value for name, value in headers_received.items()}
    return Response(status, lower_case, content.decode(errors="replace"), ms)


def _sign(
    deployment: Deployment, method: str, url: str, data: bytes | None, headers: dict[str, str]
) -> dict[str, str]:
    credentials = deployment.account.session.get_credentials()
    if credentials is None:
        raise OperatorError("no AWS credentials")
    request = AWSRequest(method, url, headers, data or b"")
    frozen = credentials.get_frozen_credentials()
    SigV4Auth(frozen, "execute-api", deployment.account.region).add_auth(request)
    return dict(request.headers.items())
