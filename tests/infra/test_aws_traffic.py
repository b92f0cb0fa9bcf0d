"""The CodeDeploy hook checks a new version, here the real handler, before it receives traffic."""

import json
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from infra.aws import traffic
from infra.database import roles
from infra.local.stack import Stack
from tests.conftest import Lambda, administrator, set_environment
from tests.infra.aws_double import ANY, REGION
from tests.infra.deployment import WITH_PGBOUNCER

VERSION = "arn:aws:lambda:eu-central-1:123456789012:function:orders:7"
EVENT = {"DeploymentId": "d-1", "LifecycleEventHookExecutionId": "hook-1"}


class Aws:
    """Fake two AWS calls that moto lacks: invoking a version, and reporting to CodeDeploy."""

    def __init__(self, invoke: Lambda) -> None:
        self.invoke = invoke
        self.invoked: list[str] = []
        self.reported: list[dict[str, str]] = []

    def answer(self, request: Request) -> Response:
        if request.path == "/":
            self.reported.append(json.loads(request.data))
            return Response("{}")
        self.invoked.append(request.path)
        try:
            return Response(json.dumps(self.invoke(json.loads(request.data))))
        except Exception as error:  # as the runtime reports it
            headers = {"X-Amz-Function-Error": "Unhandled"}
            return Response(json.dumps({"errorType": type(error).__name__}), headers=headers)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, httpserver: HTTPServer) -> Aws:
    aws = Aws(lambda event: {"statusCode": 200})
    httpserver.expect_request(ANY).respond_with_handler(aws.answer)
    hook = WITH_PGBOUNCER.resources["Function/BeforeTraffic"]["Properties"]
    [version] = hook["Environment"]["Variables"]
    variables = {
        "AWS_ENDPOINT_URL": httpserver.url_for(""),
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        version: VERSION,
    }
    set_environment(monkeypatch, variables)
    return aws


def reported(status: str) -> list[dict[str, str]]:
    report = {"deploymentId": "d-1", "lifecycleEventHookExecutionId": "hook-1"}
    return [report | {"status": status}]


def test_a_ready_version_receives_traffic(double: Aws, lambda_handler: Lambda) -> None:
    double.invoke = lambda_handler
    traffic.handler(EVENT, None)
    assert double.reported == reported("Succeeded")
    assert double.invoked == [f"/2015-03-31/functions/{VERSION}/invocations"] * 2


async def test_a_version_that_may_not_read_receives_no_traffic(
    double: Aws, own_stack: Stack, own_stack_handler: Lambda, caplog: pytest.LogCaptureFixture
) -> None:
    """It is ready all the same, since readiness reads no table."""
    async with administrator(own_stack) as admin:
        await admin.execute(f"REVOKE SELECT ON orders FROM {roles.APP}")
    double.invoke = own_stack_handler
    traffic.handler(EVENT, None)
    assert double.reported == reported("Failed")
    [line] = [record.getMessage() for record in caplog.records if record.name == traffic.__name__]
    assert line.startswith("GET /orders: 503 ")


def test_a_version_that_does_not_start_receives_no_traffic(
    double: Aws, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(event: Any) -> dict[str, Any]:
        raise ImportError

    double.invoke = fail
    traffic.handler(EVENT, None)
    assert double.reported == reported("Failed")
    assert "GET /ready: ImportError, see the function's log" in caplog.text


def test_codedeploy_is_told_of_a_version_that_cannot_be_invoked(
    double: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise CodeDeploy waits for an hour."""
    monkeypatch.setenv("NEW_VERSION", "")
    traffic.handler(EVENT, None)
    assert double.reported == reported("Failed")
