"""Alarms and dashboard use only metrics that are emitted: the handler's by real invocations, AWS's
by its documentation."""

import json
from pathlib import Path
from typing import Any

import pytest

from infra.local.stack import Stack as LocalStack
from tests.conftest import log_lines
from tests.events import http_api
from tests.infra.deployment import BOTH, WITH_PGBOUNCER, WITH_PROXY, Stack, only
from tests.integration.test_log_line import invoke_all, metrics

READ = http_api("GET", "/orders/1")
Metric = tuple[str, str, frozenset[tuple[str, str]]]
EACH = pytest.mark.parametrize("deployed", [WITH_PGBOUNCER, WITH_PROXY], ids=["pgbouncer", "proxy"])
#: "Lambda metrics", AWS Lambda Developer Guide; the CloudWatch metrics for RDS, RDS Proxy and
#: Performance Insights, RDS User Guide; those of Network Load Balancers, Elastic Load Balancing;
#: "Amazon ECS CloudWatch metrics", Amazon ECS Developer Guide.
ROLLOUT_ONLY = {"FunctionName", "Resource", "ExecutedVersion"}
DOCUMENTED: dict[str, tuple[set[str], list[set[str]]]] = {
    "AWS/Lambda": (
        {"Errors", "Throttles", "Duration", "ConcurrentExecutions"},
        [{"FunctionName"}, {"FunctionName", "Resource"}, ROLLOUT_ONLY],
    ),
    "AWS/RDS": (
        {
            *("DatabaseConnections", "FreeableMemory", "FreeStorageSpace", "CPUUtilization"),
            *("DBLoadNonCPU", "ClientConnections", "DatabaseConnectionsBorrowLatency"),
            *("DatabaseConnectionsCurrentlySessionPinned", "CPUCreditBalance"),
        },
        [{"DBInstanceIdentifier"}, {"ProxyName"}],
    ),
    "AWS/ECS": ({"CPUUtilization"}, [{"ClusterName", "ServiceName"}]),
    "AWS/NetworkELB": ({"HealthyHostCount"}, [{"LoadBalancer", "TargetGroup"}]),
}


def alarms(stack: Stack) -> dict[str, Metric]:
    return {
        path: (
            alarm["Namespace"],
            alarm["MetricName"],
            frozenset((dimension["Name"], dimension["Value"]) for dimension in alarm["Dimensions"]),
        )
        for path, alarm in stack.of_type("AWS::CloudWatch::Alarm").items()
    }


def dashboard(stack: Stack) -> list[dict[str, Any]]:
    body = only(stack.of_type("AWS::CloudWatch::Dashboard"))["DashboardBody"]
    widgets: list[dict[str, Any]] = [widget["properties"] for widget in json.loads(body)["widgets"]]
    return widgets


def drawn(widget: dict[str, Any]) -> set[Metric]:
    """List the metrics of a widget, where `.` and `...` repeat those of the line above."""
    found, above = set(), list[str]()
    for line in widget["metrics"]:
        names = [part for part in line if isinstance(part, str)]
        if names == ["..."]:
            names = above
        names = [above[n] if name == "." else name for n, name in enumerate(names)]
        found.add((names[0], names[1], frozenset(zip(names[2::2], names[3::2], strict=True))))
        above = names
    return found


@pytest.fixture
async def emitted(stack: LocalStack, tmp_path: Path) -> set[Metric]:
    """The metrics that a cold, a warm and a failed read of the deployed function emit."""
    name = {"AWS_LAMBDA_FUNCTION_NAME": "Function/Function", "AWS_LAMBDA_FUNCTION_VERSION": "7"}
    found = set()
    for number, wrong in enumerate(({}, {"DB_PASS": "wrong"})):
        folder = tmp_path / str(number)
        folder.mkdir()
        _, text = await invoke_all(stack.environment() | name | wrong, [READ, READ], folder)
        found |= {metric for line in log_lines("\n".join(text)) for metric in metrics(line)}
    return found


def as_emitted(metric: Metric) -> Metric:
    """Replace the version, which only AWS knows, with its number."""
    namespace, name, dimensions = metric
    return namespace, name, frozenset((n, "7" if n == "version" else v) for n, v in dimensions)


@EACH
async def test_every_alarm_metric_is_emitted(deployed: Stack, emitted: set[Metric]) -> None:
    seen = 0
    for path, metric in alarms(deployed).items():
        namespace, name, dimensions = metric
        if namespace == "WarmEngine" and "Cluster" not in dict(dimensions):
            assert as_emitted(metric) in emitted, path
            seen += 1
        elif namespace != "WarmEngine":  # emitted by the pooler: test_aws_fargate.py
            names, sets = DOCUMENTED[namespace]
            assert name in names, path
            assert set(dict(dimensions)) in sets, path
    assert seen >= 4


@EACH
async def test_every_dashboard_metric_is_emitted(deployed: Stack, emitted: set[Metric]) -> None:
    for widget in dashboard(deployed):
        for namespace, name, dimensions in drawn(widget):
            keys = set(dict(dimensions))
            if namespace != "WarmEngine":
                names, sets = DOCUMENTED[namespace]
                assert name in names, widget["title"]
                assert keys in sets, widget["title"]
            elif "Cluster" in keys:
                assert name in ("cl_active", "cl_waiting", "maxwait")
            else:
                assert (namespace, name, dimensions) in emitted, widget["title"]


@BOTH
def test_only_rollout_alarms_use_rollout_metrics(stack: Stack) -> None:
    group = only(stack.of_type("AWS::CodeDeploy::DeploymentGroup"))
    names = {alarm["Name"] for alarm in group["AlarmConfiguration"]["Alarms"]}
    of_rollout = {"Function/Errors", "Function/Failures", "Function/Slow"}
    assert names == of_rollout
    for path, (_, _, dimensions) in alarms(stack).items():
        keys = set(dict(dimensions))
        assert bool(keys & {"ExecutedVersion", "version"}) == (path in of_rollout), path


@BOTH
def test_common_failures_raise_alarms_outside_rollouts(stack: Stack) -> None:
    every_day = {name for path, (_, name, _) in alarms(stack).items() if "Alarms/" in path}
    assert {"Errors", "failures", "durationMs"} <= every_day


@BOTH
def test_the_dashboard_goes_from_callers_to_database(stack: Stack) -> None:
    parts = [widget["title"].partition(":")[0] for widget in dashboard(stack)]
    order = ["Callers", "Execution environments", "Pooler", "Database"]
    assert sorted(parts, key=order.index) == parts
    assert set(parts) == set(order)


@BOTH
def test_the_log_level_keeps_lines_with_metrics(stack: Stack) -> None:
    logging = stack.resources["Function/Function"]["Properties"]["LoggingConfig"]
    assert (logging["LogFormat"], logging["ApplicationLogLevel"]) == ("JSON", "INFO")
