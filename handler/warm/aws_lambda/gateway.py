"""Converts HTTP events to ASGI requests, and the responses back, with Mangum.

It works around Mangum's errors in this conversion.
"""

import base64
from typing import Any, ClassVar

from mangum.handlers import ALB, APIGateway, HTTPGateway, alb, api_gateway
from mangum.types import LambdaConfig, LambdaContext, LambdaEvent, Response, Scope

from handler.warm import log_line, tracing
from handler.warm.aws_lambda import identity
from handler.warm.http.body_limit import BODY_SIZE
from handler.warm.http.caller import CALLER

#: Suffixes of the domains of API Gateway and function URLs; any other domain is a custom one.
_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".on.aws")


# Mangum fails on some header values: two ports, an IPv6 address as host (Kludex/mangum#303).
# `_corrected` sets the server instead.
for _module in (alb, api_gateway):
    vars(_module)["get_server_and_port"] = lambda _: ("", 0)
# Mangum's handlers build the scope each time it is read. In these subclasses it is an attribute.
_ALB, _HTTP, _REST = (
    type(kind.__name__, (kind,), {"scope": None, "build_scope": vars(kind)["scope"].fget})
    for kind in (ALB, HTTPGateway, APIGateway)
)


class UnreadableEventError(Exception):
    """An HTTP event that no AWS service sends, or with malformed values from the caller."""


class Gateway:
    """The handler of all HTTP events, for `Mangum(custom_handlers=…)`.

    `base_path` is `API_BASE_PATH`. Mangum's own `api_gateway_base_path` removes characters instead
    of segments, on any domain, and does not set `root_path` (Kludex/mangum#318).
    """

    base_path: ClassVar[str] = ""
    caller_claim: ClassVar[str] = ""
    is_traced: ClassVar[bool] = False

    @classmethod
    def infer(cls, event: LambdaEvent, context: LambdaContext, config: LambdaConfig) -> bool:
        return True  # `events.kind_of` has checked it

    def __init__(self, event: LambdaEvent, context: LambdaContext, config: LambdaConfig) -> None:
        try:
            rest_or_http = _HTTP if "version" in event else _REST
            kind = _ALB if "elb" in event["requestContext"] else rest_or_http
            self._mangum: Any = kind(event, context, config)
            self._mangum.scope = self.scope = _corrected(self._mangum.build_scope(), self.base_path)
            if self.is_traced:
                self.scope["headers"] = tracing.replace_trace_headers(self.scope["headers"])
            self.scope[CALLER] = identity.of(event, self.caller_claim)
            log_line.set_caller(self.scope[CALLER])
            # Mangum ignores characters that are not base64.
            encoded = event.get("isBase64Encoded") and event.get("body")
            self.body = base64.b64decode(encoded, validate=True) if encoded else self._mangum.body
            self.scope[BODY_SIZE] = len(self.body)
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise UnreadableEventError(type(error).__name__) from error

    def __call__(self, response: Response) -> dict[str, Any]:
        # Header values are Latin-1, but Mangum decodes UTF-8.
        response["headers"] = [
            [name, value if value.isascii() else value.decode("latin-1").encode()]
            for name, value in response["headers"]
        ]
        result: dict[str, Any] = self._mangum(response)
        # Mangum adds a Content-Type where there is no body; a cache would store the one of a 304.
        if not response["body"] and not any(
            name == b"content-type" for name, _ in response["headers"]
        ):
            (result.get("headers") or {}).pop("content-type", None)
        return result


def _corrected(scope: Scope, base_path: str) -> Scope:
    """Correct what Mangum copies into the scope without a check."""
    if type(scope["method"]) is not str:
        raise TypeError
    if scope["scheme"] not in ("http", "https"):  # X-Forwarded-Proto may be a list
        first = scope["scheme"].partition(",")[0].strip().lower()
        scope["scheme"] = first if first in ("http", "https") else "https"
    # The host of a redirect if the header `Host` is invalid.
    domain = scope["aws.event"]["requestContext"].get("domainName")
    scope["server"] = (domain, 443 if scope["scheme"] == "https" else 80) if domain else None
    scope["path"], scope["root_path"] = _path_and_root(scope, str(domain).lower(), base_path)
    scope["path"].encode()  # raises for a path that no client can send
    return scope


def _path_and_root(scope: Scope, domain: str, base_path: str) -> tuple[str, str]:
    """Return the path as the client sent it, and its `root_path`, the part before the app's."""
    event, path, root = scope["aws.event"], scope["path"], base_path
    if domain.endswith(_AWS_DOMAINS):
        context = event["requestContext"]
        stage = context.get("stage") if ".execute-api." in domain else None
        root = f"/{stage}" if stage and stage != "$default" else ""
        # A REST API omits the stage from `path`; its request context has the requested path.
        if "resource" in event and ("version" not in event or context.get("path") != event["path"]):
            return root + path, root
    return path, root if path == root or path.startswith(f"{root}/") else ""
