"""Reads log lines and metrics of a deployment from CloudWatch."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from infra.aws.verify.deployment import Deployment

#: The maximum number of log lines to read: a sample is enough.
MAX_LINES = 5000
#: How long to wait for a line in CloudWatch, and the polling interval, in seconds.
LOG_TIMEOUT_S, POLLING_INTERVAL_S = 60.0, 3.0


@dataclass(frozen=True)
class Line:
    """The handler's log line of one invocation. `connect_ms` is 0 if it opened no connection."""

    is_request: bool
    is_cold: bool
    succeeded: bool
    duration_ms: float
    connect_ms: float
    attempts: int  # 0 without a query
    retries: int


def messages(
    deployment: Deployment, group: str, since: datetime, pattern: str, stream: str = ""
) -> Iterator[str]:
    """Yield the messages of a log group, from the streams whose names start with `stream`."""
    pages = (
        deployment.client("logs")
        .get_paginator("filter_log_events")
        .paginate(
            logGroupName=group,
            startTime=int(since.timestamp() * 1000),
            filterPattern=pattern,
            PaginationConfig={"MaxItems": MAX_LINES},
            **({"logStreamNamePrefix": stream} if stream else {}),
        )
    )
    for page in pages:
        for event in page["events"]:
            yield str(event["message"])


def lines(deployment: Deployment, since: datetime, pattern: str) -> list[Line]:
    """Return the handler's log lines that match a pattern."""
    group = deployment.named("Function/Log")
    parsed = map(_object, messages(deployment, group, since, pattern))
    return [_line(fields) for fields in parsed if "attempts" in fields]


def _object(message: str) -> dict[str, Any]:
    """Parse a JSON object; return an empty one for any other message."""
    try:
        parsed = json.loads(message)
    except ValueError:
        return {}
    return parsed if isinstance(parsed, dict) else {}


def _line(fields: dict[str, Any]) -> Line:
    def field(name: str, name_in_0_1_0: str) -> Any:
        return fields.get(name, fields.get(name_in_0_1_0))

    status = fields.get("status")
    return Line(
        is_request=status is not None,
        is_cold=bool(field("coldStart", "cold_start")),
        succeeded=fields.get("outcome") == "ok" or status == 404,
        duration_ms=float(field("durationMs", "duration_ms") or 0),
        connect_ms=float(field("connectMs", "connect_ms") or 0),
        attempts=int(fields["attempts"]),
        retries=int(fields.get("retries", max(int(fields["attempts"]) - 1, 0))),
    )


def warm_reads(deployment: Deployment, wanted: int) -> list[Line]:
    """Wait for `wanted` lines of warm requests since the start; return fewer after a timeout."""
    pattern, end = "{ $.attempts > 0 && $.status > 0 }", time.monotonic() + LOG_TIMEOUT_S
    while True:
        found = lines(deployment, deployment.started, pattern)
        warm = [
            line
            for line in found
            if line.is_request and not line.is_cold and line.succeeded and line.attempts
        ]
        if len(warm) >= wanted or time.monotonic() > end:
            return warm
        time.sleep(POLLING_INTERVAL_S)


def cold_starts(deployment: Deployment, since: datetime) -> list[float]:
    """Return the duration of each init phase in ms, from Lambda's REPORT lines."""
    group = deployment.named("Function/Log")
    pattern = '{ $.type = "platform.report" && $.record.metrics.initDurationMs > 0 }'
    found = []
    for message in messages(deployment, group, since, pattern):
        record = _object(message).get("record")
        metrics = record.get("metrics", {}) if isinstance(record, dict) else {}
        if "initDurationMs" in metrics:
            found.append(float(metrics["initDurationMs"]))
    return found


def values(
    deployment: Deployment,
    namespace: str,
    metric: str,
    dimensions: Sequence[Any],
    statistic: str = "Maximum",
    hours: float = 24,
) -> list[float]:
    """Return a metric's values from the last hours, with exactly these dimensions."""
    stat = {
        "Metric": {"Namespace": namespace, "MetricName": metric, "Dimensions": list(dimensions)},
        "Period": 300,
        "Stat": statistic,
    }
    now = datetime.now(UTC)
    pages = (
        deployment.client("cloudwatch")
        .get_paginator("get_metric_data")
        .paginate(
            MetricDataQueries=[{"Id": "m", "MetricStat": stat}],
            StartTime=now - timedelta(hours=hours),
            EndTime=now + timedelta(minutes=5),
        )
    )
    return [
        value
        for page in pages
        for result in page["MetricDataResults"]
        for value in result["Values"]
    ]
