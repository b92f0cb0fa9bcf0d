"""Identifies the service that sent an event, and describes events that are not served."""

import re
from typing import Any, Required, TypedDict

from handler.warm.errors import Failure

HTTP, SCHEDULE = "HTTP", "schedule"
WEBSOCKET, LATTICE = "API Gateway WebSocket", "VPC Lattice"
_SERVED = (
    "this function serves HTTP requests, scheduled rules of EventBridge, and schedules that send"
    ' {"source": "aws.scheduler"}'
)
#: Keys that identify a service: at the top level, in `requestContext` or in a record.
_KIND_BY_KEY = {
    "connectionId": WEBSOCKET,
    "serviceArn": LATTICE,
    "serviceNetworkArn": LATTICE,
    "raw_path": LATTICE,
    "methodArn": "API Gateway authorizer",  # the rest looks like an HTTP event
    "routeArn": "API Gateway authorizer",
    "authorizationToken": "AppSync authorizer",
    "requestPayload": "Lambda destination",
    "arguments": "AppSync",
    "cf": "Lambda@Edge",
    "awslogs": "CloudWatch Logs",
    "configRuleName": "AWS Config",
    "triggerSource": "Cognito",
}
#: `aws:sqs`, `aws.s3`. Any other text may come from a caller and is not quoted.
_SERVICE = re.compile(r"aws[.:][a-z0-9-]{1,40}")


class RequestContext(TypedDict, total=False):
    """The part of an HTTP event that API Gateway, a function URL or a load balancer fills in."""

    requestId: str
    domainName: str
    stage: str
    path: str
    authorizer: dict[str, Any]
    identity: dict[str, Any]
    elb: dict[str, str]


class HttpEvent(TypedDict, total=False):
    """An HTTP event: the keys that this package reads. Their values are not validated."""

    version: str
    path: str
    resource: str
    requestContext: Required[RequestContext]
    multiValueHeaders: dict[str, list[str]]
    body: str | None
    isBase64Encoded: bool


class HttpResponse(TypedDict, total=False):
    """The response to an HTTP event."""

    statusCode: Required[int]
    headers: dict[str, str]
    multiValueHeaders: dict[str, list[str]]
    cookies: list[str]
    body: str
    isBase64Encoded: bool


class UnservedEventError(Exception):
    """An event that this function does not serve.

    Raised so that Lambda counts an error, retries, and sends the event to the dead-letter queue: a
    normal return would acknowledge work that was not done.
    """


def kind_of(event: object) -> str:
    """Return HTTP, SCHEDULE, or else what sent the event: a service, a type, or `unknown`."""
    if not isinstance(event, dict):
        return "null" if event is None else type(event).__name__
    records = event.get("Records")
    first_record = records[0] if isinstance(records, list) and records else None
    inner = event.get("requestContext", first_record)
    parts = (event, inner) if isinstance(inner, dict) else (event,)
    for part in parts:
        # All at once: a loop over the keys costs a hundredth of a warm request.
        if not _KIND_BY_KEY.keys().isdisjoint(part):
            return next(kind for key, kind in _KIND_BY_KEY.items() if key in part)
    if "requestContext" in event:
        return HTTP
    source, detail_type = event.get("source"), event.get("detail-type", "Scheduled Event")
    if source in ("aws.events", "aws.scheduler") and detail_type == "Scheduled Event":
        return SCHEDULE
    for part in parts:
        for key in ("eventSource", "EventSource", "source"):
            if _SERVICE.fullmatch(str(part.get(key))):
                return str(part[key])
    return "EventBridge" if "detail-type" in event else "unknown"


def unserved_failure(event: object, kind: str) -> Failure:
    """Return the failure: it contains the event's kind and top-level keys, but no values."""
    # Escaped and cut, because the sender chose the keys and the runtime client prints the message.
    names = sorted(ascii(key)[1:-1][:40] for key in event) if isinstance(event, dict) else []
    keys = ", ".join(names[:10])
    return Failure(
        f"not served: an event of kind {kind} ({keys or 'no keys'})",
        f"check what sends it; {_SERVED}",
        name="event",
    )
