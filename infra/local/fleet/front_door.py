"""HTTP in front of the fleet, as an API Gateway HTTP API with payload format 2.0.

Owns the translation of a request into an event and of an answer into a response. Source: "AWS
Lambda proxy integrations for HTTP APIs", Amazon API Gateway Developer Guide.
"""

import base64
import time
import uuid
from collections.abc import Iterable
from typing import Any

from aiohttp import web

from infra.local.fleet import THROTTLED, Fleet
from infra.local.fleet.runtime_api import PAYLOAD_LIMIT, Answer


def api_gateway_event(
    method: str,
    path: str,
    *,
    query: str = "",
    headers: Iterable[tuple[str, str]] = (),
    body: bytes = b"",
    source_ip: str = "127.0.0.1",
) -> dict[str, Any]:
    """An event of payload format 2.0 for one request on the `$default` stage."""
    joined: dict[str, str] = {}
    cookies = []
    for name, value in headers:
        if name.lower() == "cookie":
            cookies += value.split("; ")
        else:
            seen = joined.get(name.lower())
            joined[name.lower()] = value if seen is None else f"{seen},{value}"
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


def http_response(answer: Answer) -> web.Response:
    """What API Gateway makes of the function's answer: its response, or 500 and 503 of its own; 429
    for a throttled event, as function URLs and the Invoke API have it."""
    result = answer.payload
    if answer.error == THROTTLED:
        return web.json_response({"message": "Too Many Requests"}, status=429)
    if answer.error is not None or not isinstance(result, dict) or "statusCode" not in result:
        timed_out = answer.error == "Sandbox.Timedout"
        message = "Service Unavailable" if timed_out else "Internal Server Error"
        return web.json_response({"message": message}, status=503 if timed_out else 500)
    body = result.get("body") or ""
    response = web.Response(
        status=result["statusCode"],
        body=base64.b64decode(body) if result.get("isBase64Encoded") else body.encode(),
    )
    for name, value in (result.get("headers") or {}).items():
        response.headers[name] = str(value)
    for cookie in result.get("cookies") or []:
        response.headers.add("Set-Cookie", cookie)
    return response


def application(fleet: Fleet) -> web.Application:
    """An aiohttp application that hands every request to `fleet`."""

    async def serve(request: web.Request) -> web.Response:
        event = api_gateway_event(
            request.method,
            request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers=request.headers.items(),
            body=await request.read(),
        )
        answer = await fleet.invoke(event)
        response = http_response(answer)
        kind = "cold" if answer.cold else "warm"
        failed = f" {answer.error}: {answer.payload}" if answer.error else ""
        print(
            f"{request.method} {request.path_qs} → {response.status}"
            f"  {kind} {answer.ms:.1f} ms, process {answer.pid}{failed}",
            flush=True,
        )
        return response

    app = web.Application(client_max_size=PAYLOAD_LIMIT)
    app.router.add_route("*", "/{path:.*}", serve)
    return app
