"""`make verify` passes a good deployment and fails exactly the check that is broken.

The lab serves as function and PgBouncer, with real log lines; moto is CloudWatch and Secrets
Manager. Faked, since moto lacks them: the API's authorization, Lambda's REPORT lines and versions,
and the stack's resources, which are taken from the templates.
"""

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Set
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest
from aiohttp import web
from botocore.exceptions import ClientError

from infra.aws import account, stacks
from infra.aws.verify import __main__ as verify
from infra.aws.verify import changes, observed, operation, serving
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding
from infra.local.fleet import Ending, Fleet
from infra.local.fleet.http_front_end import application
from infra.local.stack import Stack
from tests.conftest import eventually
from tests.infra import aws_double, deployment
from tests.infra.aws_double import REGION, client
from tests.infra.test_aws_preflight import EUROPE, NO_CREDENTIALS, command

Rows = dict[str, dict[str, str]]
ALARM = "AWS::CloudWatch::Alarm"


class Double:
    """A fake deployment: the templates' resources, the lab behind an API, CloudWatch in moto."""

    def __init__(self, stack: Stack, folder: Path, fleet: Fleet, without: Set[str]) -> None:
        self.stack, self.folder, self.fleet = stack, folder, fleet
        self.without = without  # paths of alarms whose metric has no data
        self.authorization = "IAM"
        self.is_public = False
        self.url = ""
        self._shipped = 0
        self._offset = len(stack.pgbouncer.log_since_start())
        self.resources = {
            path: stacks.Resource(path, resource["Type"], path.replace("/", "-"))
            for path, resource in deployment.WITH_PGBOUNCER.resources.items()
        }

    @property
    def described(self) -> stacks.Stack:
        parameters = {"Authorization": self.authorization, "BudgetedConnections": "65"}
        outputs = {"Url": self.url, "AppSecret": "app"}
        return stacks.Stack("warm-engine", "UPDATE_COMPLETE", parameters, outputs)

    # --- What AWS would have written -------------------------------------------------------------

    def ship(self, group: str, messages: list[str], stream: str = "1") -> None:
        logs, now = client("logs"), int(time.time() * 1000)
        group = self.resources[group].identifier
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_group(logGroupName=group)
        with suppress(logs.exceptions.ResourceAlreadyExistsException):
            logs.create_log_stream(logGroupName=group, logStreamName=stream)
        events = [{"timestamp": now, "message": message} for message in messages if message]
        if events:
            logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)

    def ship_handler_lines(self) -> None:
        text = "".join(path.read_text() for path in sorted(self.folder.glob("sandbox-*.log")))
        lines = text[: text.rfind("\n") + 1].splitlines()
        new, self._shipped = lines[self._shipped :], len(lines)
        self.ship("Function/Log", new)

    def ship_pgbouncer_lines(self) -> None:
        text = self.stack.pgbouncer.log_since_start()[self._offset :]
        self.ship("Pooler/Log", text.splitlines(), "pgbouncer/pgbouncer/1")

    def has_lost_a_client(self) -> bool:
        return "closing because: client" in self.stack.pgbouncer.log_since_start()[self._offset :]

    def ship_report(self, ms: float) -> None:
        record = {"requestId": "1", "status": "success", "metrics": {"initDurationMs": ms}}
        self.ship("Function/Log", [json.dumps({"type": "platform.report", "record": record})])

    def measure(self) -> None:
        """Store a value of the metric of every alarm in the templates."""
        cloudwatch = client("cloudwatch")
        for path, properties in deployment.WITH_PGBOUNCER.of_type(ALARM).items():
            statistic = {k: v for k, v in properties.items() if k.endswith("Statistic")}
            cloudwatch.put_metric_alarm(
                AlarmName=self.resources[path].identifier,
                Namespace=properties["Namespace"],
                MetricName=properties["MetricName"],
                Dimensions=properties["Dimensions"],
                Period=60,
                EvaluationPeriods=1,
                Threshold=1,
                ComparisonOperator="GreaterThanThreshold",
                **statistic,
            )
            datum: dict[str, Any] = {"MetricName": properties["MetricName"], "Value": 3.0}
            datum["Dimensions"] = properties["Dimensions"]
            if path in self.without:  # as RDS does, which stores names in lower case
                datum["Dimensions"] = [
                    {**dimension, "Value": dimension["Value"].swapcase()}
                    for dimension in datum["Dimensions"]
                ]
            cloudwatch.put_metric_data(Namespace=properties["Namespace"], MetricData=[datum])
        dimensions = [{"Name": "DBInstanceIdentifier", "Value": "Database-Instance"}]
        datum = {"MetricName": "DatabaseConnections", "Value": 12, "Dimensions": dimensions}
        cloudwatch.put_metric_data(Namespace="AWS/RDS", MetricData=[datum])

    # --- API Gateway --------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = application(self.fleet)

        @web.middleware
        async def authorize(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            signature = f"/{REGION}/execute-api/aws4_request"
            allowed = signature in request.headers.get("Authorization", "")
            if not (allowed or self.is_public or request.path == "/health"):
                return web.json_response({"message": "Forbidden"}, status=403)
            response = await handler(request)
            await asyncio.to_thread(self.ship_handler_lines)
            return response

        app.middlewares.append(authorize)
        return app

    async def verify(self, with_changes: bool = False) -> Rows:
        """Row → its result."""
        report = self.folder / "aws.json"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(stacks, "find", lambda *_: self.described)
            patch.setattr(stacks, "resources", lambda *_: self.resources.values())
            code = await asyncio.to_thread(verify.verify, "warm-engine", with_changes, report)
        rows = {row["name"]: row for row in json.loads(report.read_text())["rows"]}
        assert code == (1 if "no" in {row["answer"] for row in rows.values()} else 0)
        return rows


@asynccontextmanager
async def deployment_after_a_day(
    stack: Stack,
    folder: Path,
    ending: Ending = Ending.GRACEFUL,
    without: Set[str] = frozenset(),
    **environment: str,
) -> AsyncIterator[Double]:
    """A deployment after a day: a sandbox came and went, the schedule ran."""
    async with Fleet({**stack.environment(), **environment}, logs=folder) as fleet:
        double = Double(stack, folder, fleet, without)
        cold = await fleet.invoke({"source": "aws.scheduler"})
        [sandbox] = fleet.sandboxes
        await fleet.retire(sandbox, ending)
        await asyncio.to_thread(double.ship_report, cold.ms)
        await asyncio.to_thread(eventually, double.has_lost_a_client)
        for write in (double.ship_handler_lines, double.ship_pgbouncer_lines, double.measure):
            await asyncio.to_thread(write)
        runner = web.AppRunner(double.application())
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        double.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield double
        finally:
            await runner.cleanup()


@pytest.fixture(autouse=True)
def cloud(aws: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start an empty account in moto, and shorten the waits: what is missing will not arrive."""
    monkeypatch.setattr(observed, "LOG_TIMEOUT_S", 5.0)
    monkeypatch.setattr(observed, "POLLING_INTERVAL_S", 0.1)
    for name in ("WARM_MS", "COLD_MS"):
        monkeypatch.setattr(serving, name, 60_000.0)


def failed(rows: Rows) -> set[str]:
    return {name for name, row in rows.items() if row["answer"] == "no"}


def empty_deployment() -> Deployment:
    account_info = account.Account(boto3.Session(region_name=REGION), REGION, "1", "arn")
    return Deployment(account_info, stacks.Stack("s", "", {}, {}), {}, datetime.now(UTC))


async def test_a_good_deployment_passes_every_check(stack: Stack, tmp_path: Path) -> None:
    async with deployment_after_a_day(stack, tmp_path) as double:
        rows = await double.verify()
    assert {name: row["seen"] for name, row in rows.items() if row["answer"] != "yes"} == {}
    alarms = {path.rpartition("/")[2] for path in deployment.WITH_PGBOUNCER.of_type(ALARM)}
    assert {f"alarm {name}" for name in alarms} <= rows.keys()
    assert len(rows) == len(alarms) + 8
    assert "unsigned GET /orders/1: 403" in rows["strangers refused"]["seen"]
    # The first request to the database, in a sandbox that /health started.
    assert rows["one connection"]["seen"].endswith("warm reads 1 connected, 0 were retried")


async def test_a_missing_extension_fails_the_shutdown_check(stack: Stack, tmp_path: Path) -> None:
    async with deployment_after_a_day(stack, tmp_path, Ending.KILL) as double:
        rows = await double.verify()
    assert failed(rows) == {"closed at shutdown"}
    assert "1 × client unexpected eof" in rows["closed at shutdown"]["seen"]


async def test_a_connection_per_request_fails_its_check(stack: Stack, tmp_path: Path) -> None:
    """As with NullPool: no connection is old enough to be reused."""
    async with deployment_after_a_day(stack, tmp_path, DB_MAX_IDLE="0.000001") as double:
        rows = await double.verify()
    assert failed(rows) == {"one connection"}
    assert rows["warm read"]["answer"] == "yes"


async def test_an_alarm_on_a_wrong_metric_name_fails(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operation, "YOUNG", timedelta(0))
    unknown = ("Alarms/Rotation", "Alarms/Credits", "Function/Errors")
    named = {"Alarms/Throttles", *unknown}
    async with deployment_after_a_day(stack, tmp_path, without=named) as double:
        client("cloudwatch").delete_alarms(AlarmNames=["Alarms-Disk"])
        rows = await double.verify()
    assert failed(rows) == {"alarm Throttles", "alarm Disk"}
    for path in unknown:
        assert rows[f"alarm {path.rpartition('/')[2]}"]["answer"] == "could not tell"
    assert "CHANGES=1" in rows["alarm Rotation"]["seen"]


async def test_a_public_api_fails(stack: Stack, tmp_path: Path) -> None:
    async with deployment_after_a_day(stack, tmp_path) as double:
        double.is_public = True
        rows = await double.verify()
    assert failed(rows) == {"strangers refused"}


async def test_missing_data_is_reported_as_undetermined(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TOKEN", raising=False)
    async with deployment_after_a_day(stack, tmp_path) as double:
        double.authorization = "JWT"
        rows = await double.verify()
        assert failed(rows) == set()
        assert "set TOKEN" in rows["warm read"]["seen"]
        for path in [p for p, r in double.resources.items() if r.kind == "AWS::Events::Rule"]:
            del double.resources[path]
        client("logs").delete_log_group(logGroupName="Pooler-Log")
        double.ship("Pooler/Log", ["nothing of interest"])
        rows = await double.verify()
    assert failed(rows) == {"schedule"}
    assert rows["closed at shutdown"]["answer"] == "could not tell"


async def test_an_exhausted_or_stopped_database_fails(own_stack: Stack, tmp_path: Path) -> None:
    async with deployment_after_a_day(own_stack, tmp_path) as double:
        dimensions = [{"Name": "DBInstanceIdentifier", "Value": "Database-Instance"}]
        datum = {"MetricName": "DatabaseConnections", "Value": 66, "Dimensions": dimensions}
        client("cloudwatch").put_metric_data(Namespace="AWS/RDS", MetricData=[datum])
        assert failed(await double.verify()) == {"within budget"}
        own_stack.postgres.stop()
        rows = await double.verify()
    assert "answers" in failed(rows)
    assert "/ready: 503" in rows["answers"]["seen"]


# --- CHANGES=1 -----------------------------------------------------------------------------------


async def test_changes_1_places_an_order_twice_rotates_and_deploys(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client("secretsmanager").create_secret(Name="app", SecretString="{}")
    async with deployment_after_a_day(stack, tmp_path) as double:
        deleted: list[str] = []
        loop = asyncio.get_running_loop()

        class Lambda:
            """Fake the versions of a function from an image, which moto lacks."""

            def get_function_configuration(self, **_: str) -> dict[str, str]:
                return {}

            def update_function_configuration(self, **_: str) -> None: ...

            def get_waiter(self, _: str) -> Any:
                return type("Waiter", (), {"wait": lambda self, **_: None})()

            def publish_version(self, **_: str) -> dict[str, str]:
                return {"Version": "7"}

            def invoke(self, Payload: bytes, **_: str) -> dict[str, Any]:  # noqa: N803  # AWS's names
                [sandbox] = double.fleet.sandboxes
                asyncio.run_coroutine_threadsafe(double.fleet.retire(sandbox), loop).result()
                answered = asyncio.run_coroutine_threadsafe(
                    double.fleet.invoke(json.loads(Payload), cold=True), loop
                ).result()
                body = json.dumps(answered.payload).encode()
                return {"Payload": type("Stream", (), {"read": lambda self: body})()}

            def delete_function(self, Qualifier: str, **_: str) -> None:  # noqa: N803  # AWS's names
                deleted.append(Qualifier)

        asked = Deployment.client
        monkeypatch.setattr(
            Deployment,
            "client",
            lambda own, name: Lambda() if name == "lambda" else asked(own, name),
        )
        rows = await double.verify(with_changes=True)
    assert {row.name for row in changes.CHECKS} <= rows.keys()
    assert failed(rows) == set()
    assert rows["new version"]["seen"] == "version 7 answered /ready with 200"
    assert rows["order twice"]["answer"] == "yes"
    assert rows["rotation"]["answer"] == "yes"
    assert deleted == ["7"]


@pytest.mark.parametrize("failing", ["wait", "publish_version", "invoke"])
def test_a_failed_new_version_restores_the_function(
    monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    calls: list[str] = []
    description = "before"

    class Lambda:
        def __getattr__(self, name: str) -> Any:
            def call(**arguments: Any) -> Any:
                nonlocal description
                calls.append(name)
                if name == failing:
                    raise ClientError({"Error": {"Code": "InternalFailure"}}, name)
                if name == "update_function_configuration":
                    description = arguments["Description"]
                return {"Description": description, "Version": "7"}

            return call

        def get_waiter(self, _: str) -> Any:
            return self

    monkeypatch.setattr(Deployment, "client", lambda *_: Lambda())
    [check] = [check for check in changes.CHECKS if check.name == "new version"]
    assert check.run(empty_deployment()).answer == "could not tell"
    assert failing in calls
    assert description == "before"
    assert ("delete_function" in calls) is (failing == "invoke")


# --- Errors in one line --------------------------------------------------------------------------


def test_missing_credentials_are_reported_in_one_line() -> None:
    code, output = command("infra.aws.verify", **NO_CREDENTIALS, **EUROPE)
    assert (code, output.count("\n")) == (1, 1), output
    assert "verify: no AWS credentials" in output


def test_unknown_and_foreign_stacks_are_reported_in_one_line() -> None:
    moto = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    code, output = command("infra.aws.verify", STACK="gone", **moto)
    assert (code, output.count("\n")) == (1, 1), output
    assert "there is no stack gone in eu-central-1" in output
    aws_double.create_application("other", MultiAz="true")
    code, output = command("infra.aws.verify", STACK="other", **moto)
    assert (code, output.count("\n")) == (1, 1), output
    assert "the stack other has no function" in output


@pytest.mark.parametrize("status", ["CREATE_IN_PROGRESS", "ROLLBACK_COMPLETE", "CREATE_FAILED"])
def test_a_half_created_stack_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    monkeypatch.setattr(stacks, "find", lambda _, name: stacks.Stack(name, status, {}, {}))
    with pytest.raises(account.OperatorError, match=f"the stack half is {status}"):
        verify.verify("half", False)


# --- Limits --------------------------------------------------------------------------------------


def test_slow_reads_and_slow_starts_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "WARM_MS", 100.0)
    monkeypatch.setattr(serving, "COLD_MS", 3000.0)
    deployment_to_check = empty_deployment()
    for ms, answer in ((99.0, "yes"), (101.0, "no")):
        deployment_to_check.reads[:] = [observed.Line(True, False, True, ms, 0, 1, 0)] * 10
        assert serving.warm_read(deployment_to_check).answer == answer
        assert serving.one_connection(deployment_to_check).answer == "yes"
    deployment_to_check.reads[:] = [observed.Line(True, False, True, 5, 0, 2, 1)] * 10
    assert serving.one_connection(deployment_to_check).answer == "no"
    for starts, answer in (([2900.0], "yes"), ([3100.0], "no"), ([], "could not tell")):
        monkeypatch.setattr(observed, "cold_starts", lambda *_, starts=starts: starts)
        assert serving.cold_start(deployment_to_check).answer == answer


def test_denied_permissions_and_aws_errors_are_undetermined() -> None:
    deployment_to_check = empty_deployment()

    def refused(code: str) -> Check:
        def examine(_: Deployment) -> Finding:
            raise ClientError({"Error": {"Code": code, "Message": "no"}}, "FilterLogEvents")

        return Check("row", "claim", examine)

    for code in ("AccessDeniedException", "InternalFailure"):
        finding = refused(code).run(deployment_to_check)
        assert finding.answer == "could not tell"
        assert code in finding.seen


def test_log_fields_are_read_under_current_and_0_1_0_names() -> None:
    before = {"cold_start": False, "outcome": "ok", "status": 200, "duration_ms": 7.5}
    before |= {"attempts": 2, "connect_ms": 1}
    now = {"coldStart": False, "outcome": "ok", "status": 200, "durationMs": 7.5}
    now |= {"attempts": 2, "connectMs": 1, "retries": 1}
    assert observed._line(before) == observed._line(now)
    assert observed._line(now) == observed.Line(True, False, True, 7.5, 1, 2, 1)
