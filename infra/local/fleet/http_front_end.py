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


def http_response(answer: InvocationResult) -> web.Response:
    """Convert the function's result as API Gateway does, with 500 and 503 for failures, and 429 for
    a throttled event, as function URLs and the Invoke API do."""
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
    """Return an aiohttp application that sends every request to `fleet`."""

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
        failed = log_safety.escape(f" {answer.error}: {answer.payload}") if answer.error else ""
        print(
            f"{request.method} {request.path_qs} → {response.status}"
            f"  {kind} {answer.ms:.1f} ms, process {answer.pid}{failed}",
            flush=True,
        )
        return response

    app = web.Application(client_max_size=PAYLOAD_LIMIT)
    app.router.add_route("*", "/{path:.*}", serve)
    return app
