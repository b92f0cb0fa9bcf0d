"""The API's authorization as the templates define it: IAM, JWT or none."""

from typing import Any

import pytest

from handler.app import app
from infra.aws import template_file
from tests.infra.deployment import Stack, deployment, only

JWT = {"Authorization": "JWT", "JwtIssuer": "https://issuer.example", "JwtAudience": "orders,admin"}
HEALTH = {"GET /health", "HEAD /health"}


def routes(stack: Stack) -> dict[str, dict[str, Any]]:
    """Route → its properties."""
    return {
        route["RouteKey"]: route for route in stack.of_type("AWS::ApiGatewayV2::Route").values()
    }


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [({}, "AWS_IAM"), (JWT, "JWT"), ({"Authorization": "NONE"}, "NONE")],
    ids=["IAM", "JWT", "NONE"],
)
def test_every_route_but_health_uses_the_chosen_authorization(
    parameters: dict[str, str], kind: str
) -> None:
    stack = deployment(**parameters)
    assert {name: route["AuthorizationType"] for name, route in routes(stack).items()} == {
        "$default": kind,
        **dict.fromkeys(HEALTH, "NONE"),
    }
    # There is no route around these to the function.
    permissions = stack.of_type("AWS::Lambda::Permission").values()
    assert {permission["Principal"] for permission in permissions} == {
        "apigateway.amazonaws.com",
        "events.amazonaws.com",
        "secretsmanager.amazonaws.com",
    }
    assert not stack.of_type("AWS::Lambda::Url")
    assert ("all, because" in stack.output("Callers")) == (kind == "NONE")


def test_tokens_must_match_the_configured_issuer_and_audience() -> None:
    stack = deployment(**JWT)
    assert only(stack.of_type("AWS::ApiGatewayV2::Authorizer"))["JwtConfiguration"] == {
        "Issuer": "https://issuer.example",
        "Audience": ["orders", "admin"],
    }
    assert routes(stack)["$default"]["AuthorizerId"] == "Function/Authorizer"
    assert not deployment().of_type("AWS::ApiGatewayV2::Authorizer")


@pytest.mark.parametrize("missing", ["JwtIssuer", "JwtAudience"])
def test_jwt_authorization_requires_issuer_and_audience(missing: str) -> None:
    rule = template_file.read("template")["Rules"]["Jwt"]
    assert rule["RuleCondition"] == {"Fn::Equals": [{"Ref": "Authorization"}, "JWT"]}
    refused = {"Fn::Not": [{"Fn::Equals": [{"Ref": missing}, ""]}]}
    assert refused in [assertion["Assert"] for assertion in rule["Assertions"]]


def test_public_routes_exist_and_read_no_data() -> None:
    paths = {
        f"{method} {getattr(route, 'path', '')}"
        for route in app.routes
        for method in getattr(route, "methods", None) or ()
    }
    assert "GET /health" in paths
    assert all(route.partition(" ")[2] == "/health" for route in HEALTH)


def test_the_access_log_names_the_caller() -> None:
    stage = only(deployment().of_type("AWS::ApiGatewayV2::Stage"))
    log = stage["AccessLogSettings"]["Format"]
    assert '"iam":"$context.identity.userArn"' in log
    assert '"subject":"$context.authorizer.claims.sub"' in log
