"""Builds a request's event as each service in front of a function would send it.

Based on the examples in the AWS documentation: API Gateway's "Lambda proxy integrations" for REST
(v1) and HTTP APIs (v2), "Using AWS Lambda with an Application Load Balancer", "Invoking Lambda
function URLs".
"""

import base64
from typing import Any

from infra.local.fleet.http_front_end import api_gateway_event

Event = dict[str, Any]
#: API Gateway's default domain for an API.
OWN_DOMAIN = "abc123.execute-api.eu-central-1.amazonaws.com"
JSON = {"content-type": "application/json", "host": "example.test"}


def http_api(method: str, path: str, query: str = "", body: str = "", **headers: str) -> Event:
    extra_headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return api_gateway_event(
        method, path, query=query, headers={**JSON, **extra_headers}.items(), body=body.encode()
    )


def http_api_on_a_stage(
    method: str, path: str, query: str = "", body: str = "", **headers: str
) -> Event:
    event = http_api(method, f"/prod{path}", query, body, **headers)
    event["requestContext"] |= {"stage": "prod", "domainName": OWN_DOMAIN}
    return event


def http_api_1_0(method: str, path: str, query: str = "", body: str = "", **headers: str) -> Event:
    event = rest_api(method, f"/prod{path}", query, body, **headers)
    event["requestContext"]["path"] = event["path"]
    return event | {"version": "1.0"}


def function_url(method: str, path: str, query: str = "", body: str = "", **headers: str) -> Event:
    event = http_api(method, path, query, "", **headers)
    event["requestContext"] |= {"domainName": "abc.lambda-url.eu-central-1.on.aws"}
    return event | {"body": body, "isBase64Encoded": False}


def rest_api(method: str, path: str, query: str = "", body: str = "", **headers: str) -> Event:
    extra_headers = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    pairs = [pair.split("=") for pair in query.split("&") if pair]
    return {
        "resource": "/{proxy+}",
        "path": path,
        "httpMethod": method,
        "headers": extra_headers,
        "multiValueHeaders": {name: [value] for name, value in extra_headers.items()},
        "queryStringParameters": dict(pairs) or None,
        "multiValueQueryStringParameters": {name: [value] for name, value in pairs} or None,
        "pathParameters": {"proxy": path.strip("/")},
        "stageVariables": None,
        "requestContext": {
            "resourcePath": "/{proxy+}",
            "httpMethod": method,
            "path": f"/prod{path}",
            "stage": "prod",
            "domainName": OWN_DOMAIN,
            "identity": {"sourceIp": "127.0.0.1"},
        },
        "body": body or None,
        "isBase64Encoded": False,
    }


def load_balancer(method: str, path: str, query: str = "", body: str = "", **headers: str) -> Event:
    extra_headers = {**JSON, **{name.replace("_", "-"): value for name, value in headers.items()}}
    return {
        "requestContext": {"elb": {"targetGroupArn": "arn:aws:elasticloadbalancing:…"}},
        "httpMethod": method,
        "path": path,
        "queryStringParameters": dict(pair.split("=") for pair in query.split("&") if pair),
        "headers": extra_headers,
        "body": base64.b64encode(body.encode()).decode(),
        "isBase64Encoded": True,
    }


def load_balancer_multi_value(
    method: str, path: str, query: str = "", body: str = "", **headers: str
) -> Event:
    event = load_balancer(method, path, query, body, **headers)
    event["multiValueHeaders"] = {name: [value] for name, value in event.pop("headers").items()}
    event["multiValueQueryStringParameters"] = {
        name: [value] for name, value in event.pop("queryStringParameters").items()
    }
    return event


ALL = [
    http_api,
    http_api_on_a_stage,
    http_api_1_0,
    function_url,
    rest_api,
    load_balancer,
    load_balancer_multi_value,
]
