"""`make administer` runs a task inside the VPC, prints its log and returns its exit code."""

import json
from typing import Any

import pytest
from pytest_httpserver import HTTPServer
from werkzeug import Request, Response

from tests.conftest import run, set_environment
from tests.infra.aws_double import ANY, REGION
from tests.infra.deployment import WITH_PGBOUNCER

ARN = "arn:aws:ecs:eu-central-1:123456789012:task/cluster/f00"
OUTPUTS = WITH_PGBOUNCER.stack("Migration").template["Outputs"]
INNER_OUTPUTS = {name: f"a-{name}" for name in OUTPUTS} | {"SubnetIds": "subnet-1,subnet-2"}


class Aws:
    """Fake AWS whose task has finished by the time it is polled."""

    def __init__(self) -> None:
        self.outputs = INNER_OUTPUTS
        self.has_migration = True
        self.task: dict[str, Any] = {"containers": [{"exitCode": 0}]}
        self.log = ["who", "storefront_admin"]
        self.requests: dict[str, dict[str, Any]] = {}

    def json(self, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        self.requests[operation] = body
        answers: dict[str, dict[str, Any]] = {
            "RunTask": {"tasks": [{"taskArn": ARN}], "failures": []},
            "DescribeTasks": {"tasks": [{"lastStatus": "STOPPED", **self.task}]},
            "FilterLogEvents": {"events": [{"message": line} for line in self.log]},
        }
        return answers[operation]

    def xml(self, operation: str, stack: str) -> tuple[int, str]:
        if operation == "DescribeStackResource" and stack == "warm-engine" and self.has_migration:
            detail = "<PhysicalResourceId>inner</PhysicalResourceId>"
            result = f"<StackResourceDetail>{detail}</StackResourceDetail>"
        elif operation == "DescribeStacks" and stack in ("warm-engine", "inner"):
            members = "".join(
                f"<member><OutputKey>{name}</OutputKey><OutputValue>{value}</OutputValue></member>"
                for name, value in (self.outputs if stack == "inner" else {}).items()
            )
            status = "<StackStatus>CREATE_COMPLETE</StackStatus>"
            status += "<CreationTime>2026-01-01T00:00:00Z</CreationTime>"
            result = f"<Stacks><member>{status}<Outputs>{members}</Outputs></member></Stacks>"
        else:
            message = f"Stack '{stack}' does not exist"
            error = f"<Error><Code>ValidationError</Code><Message>{message}</Message></Error>"
            return 400, f"<ErrorResponse>{error}</ErrorResponse>"
        return 200, f"<R><{operation}Result>{result}</{operation}Result></R>"

    def answer(self, request: Request) -> Response:
        if target := request.headers.get("X-Amz-Target"):
            return Response(
                json.dumps(self.json(target.partition(".")[2], json.loads(request.data)))
            )
        status, body = self.xml(request.form["Action"], request.form["StackName"])
        return Response(body, status)


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch, httpserver: HTTPServer) -> Aws:
    aws = Aws()
    httpserver.expect_request(ANY).respond_with_handler(aws.answer)
    variables = {
        "AWS_ENDPOINT_URL": httpserver.url_for(""),
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
    }
    set_environment(monkeypatch, variables)
    monkeypatch.delenv("STACK", raising=False)
    return aws


def test_a_statement_runs_in_the_vpc_and_its_rows_are_printed(double: Aws) -> None:
    code, output = run("-m", "infra.aws.administer", "SELECT current_user AS who")
    assert (code, output.splitlines()[-2:]) == (0, double.log), output
    request = double.requests["RunTask"]
    assert (request["cluster"], request["taskDefinition"]) == ("a-Cluster", "a-Task")
    [override] = request["overrides"]["containerOverrides"]
    [container] = WITH_PGBOUNCER.resources["Migration/Task"]["Properties"]["ContainerDefinitions"]
    assert override == {"name": container["Name"], "command": ["SELECT current_user AS who"]}
    assert request["networkConfiguration"]["awsvpcConfiguration"] == {
        "subnets": ["subnet-1", "subnet-2"],
        "securityGroups": ["a-SecurityGroup"],
        "assignPublicIp": "DISABLED",
    }
    # The name that awslogs gives it: prefix, container, task.
    prefix = container["LogConfiguration"]["Options"]["awslogs-stream-prefix"]
    stream = f"{prefix}/{container['Name']}/f00"
    assert double.requests["FilterLogEvents"]["logStreamNames"] == [stream]


def test_without_a_statement_the_task_gets_no_arguments(double: Aws) -> None:
    assert run("-m", "infra.aws.administer")[0] == 0
    assert double.requests["RunTask"]["overrides"]["containerOverrides"][0]["command"] == []


def test_the_exit_code_is_the_task_exit_code(double: Aws) -> None:
    double.task, double.log = {"containers": [{"exitCode": 1}]}, ["UndefinedTableError: …"]
    code, output = run("-m", "infra.aws.administer", "SELECT * FROM nowhere")
    assert (code, output.splitlines()[-1]) == (1, "UndefinedTableError: …")


def test_a_task_that_never_started_is_reported_with_the_reason(double: Aws) -> None:
    double.task, double.log = {"containers": [{}], "stoppedReason": "CannotPullContainerError"}, []
    code, output = run("-m", "infra.aws.administer")
    assert code == 1
    assert output.endswith("administer: the task did not start: CannotPullContainerError\n"), output


@pytest.mark.parametrize("has_migration", [True, False])
def test_a_stack_without_a_migration_task_is_reported_in_one_line(
    double: Aws, has_migration: bool
) -> None:
    """As during the first deployment, and after one that failed."""
    double.outputs, double.has_migration = {}, has_migration
    code, output = run("-m", "infra.aws.administer")
    assert (code, output.count("\n")) == (1, 1), output
    assert "the stack warm-engine (CREATE_COMPLETE) has no task to run" in output
    assert "Run `make deploy STACK=warm-engine` first" in output


def test_an_unknown_stack_is_reported_in_one_line(
    double: Aws, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STACK", "unknown")
    code, output = run("-m", "infra.aws.administer")
    assert (code, output.count("\n")) == (1, 1)
    assert "there is no stack unknown in eu-central-1. Set STACK=" in output
