"""The HTTP front end of the fleet, like an API Gateway HTTP API with payload format 2.0.

Source: "AWS Lambda proxy integrations for HTTP APIs", Amazon API Gateway Developer Guide.
"""

import base64

from aiohttp import web

from handler.warm import log_safety
from infra.local.fleet import THROTTLED, Fleet
from infra.local.fleet.api_gateway import api_gateway_event
from infra.local.fleet.runtime_api import PAYLOAD_LIMIT, InvocationResult

__all__ = ["api_gateway_event", "application", "http_response"]


def http_response(result: InvocationResult) -> web.Response:
    """Convert the function's result as API Gateway does: 503 for a timeout and 500 for other
    failures. A throttled event is 429, as with function URLs and the Invoke API."""
    payload = result.payload
    if result.error == THROTTLED:
        return web.json_response({"message": "Too Many Requests"}, status=429)
    if result.error == "Sandbox.Timedout":
        return web.json_response({"message": "Service Unavailable"}, status=503)
    if result.error is not None or not isinstance(payload, dict) or "statusCode" not in payload:
        return web.json_response({"message": "Internal Server Error"}, status=500)
    body = payload.get("body") or ""
    response = web.Response(
        status=payload["statusCode"],
        body=base64.b64decode(body) if payload.get("isBase64Encoded") else body.encode(),
    )
    for name, value in (payload.get("headers") or {}).items():
        response.headers[name] = str(value)
    for cookie in payload.get("cookies") or []:
        response.headers.add("Set-Cookie", cookie)
    return response


def application(fleet: Fleet) -> web.Application:
    """Return an aiohttp application that sends every request to `fleet`."""

    async def serve(request: web.Request) -> web.Response:
        event = api_gateway_event(
            request.method,
            request.rel_url.raw_path,
            query=request.rel_url.raw_query_string,
            headers=request.headers.items(),
            body=await request.read(),
        )
        result = await fleet.invoke(event)
        response = http_response(result)
        start = "cold" if result.cold else "warm"
        error = log_safety.escape(f" {result.error}: {result.payload}") if result.error else ""
        print(
            f"{request.method} {request.path_qs} → {response.status}"
            f"  {start} {result.ms:.1f} ms, process {result.pid}{error}",
            flush=True,
        )
        return response

    app = web.Application(client_max_size=PAYLOAD_LIMIT)
    app.router.add_route("*", "/{path:.*}", serve)
    return app
