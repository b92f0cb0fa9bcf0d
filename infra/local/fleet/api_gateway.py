"""The API Gateway event of an HTTP request, in payload format 2.0.

Standard library only, without imports of this project: the pytest plugin loads it by its path.
Source: "AWS Lambda proxy integrations for HTTP APIs", Amazon API Gateway Developer Guide.
"""

import base64
import time
import uuid
from collections.abc import Iterable
from typing import Any


def api_gateway_event(
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    source_ip: str = "127.0.0.1",
) -> dict[str, Any]:
    """Return the event of a request on the `$default` stage."""
    joined: dict[str, str] = {}
    cookies = []
    for name, value in ((name.lower(), value) for name, value in headers):
        if name == "cookie":
            cookies += value.split("; ")
        else:
            joined[name] = f"{joined[name]},{value}" if name in joined else value
    now = time.time()
    event: dict[str, Any] = {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": joined,
        "requestContext": {
            "accountId": "000000000000",
            "apiId": "local",
            "domainName": "localhost",
            "domainPrefix": "local",
            "http": {
                "method": method,
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": source_ip,
                "userAgent": joined.get("user-agent", ""),
            },
            "requestId": uuid.uuid4().hex,
            "routeKey": "$default",
            "stage": "$default",
            "time": time.strftime("%d/%b/%Y:%H:%M:%S +0000", time.gmtime(now)),
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }
    if cookies:
        event["cookies"] = cookies
    if body:
        event["isBase64Encoded"] = True
        event["body"] = base64.b64encode(body).decode()
    return event
