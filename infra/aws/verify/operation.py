"""Checks that alarms have data and that the schedule runs."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from typing import Any

from infra.aws.verify import observed
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding, decide, unknown

#: Alarms whose metrics may have no data, by the last part of their path.
RARE = {
    "Rotation": "no rotation within a day; CHANGES=1 starts one",
    "Errors": "only while a deployment shifts traffic between two versions",
    "Credits": "only for burstable classes (db.t…)",
}
ALARM_CLAIM = "Its metric has data under its dimensions"
#: CloudWatch shows the first values of a new resource after some minutes.
YOUNG = timedelta(minutes=30)
#: The schedule is hourly; an event may be late.
SCHEDULE = timedelta(hours=2, minutes=10)


def alarms(deployment: Deployment) -> Iterator[Check]:
    """Yield a check for each alarm of the stack."""
    resources = deployment.of_type("AWS::CloudWatch::Alarm")
    for resource in sorted(resources, key=lambda resource: resource.path):
        name = resource.path.rpartition("/")[2]
        yield Check(
            f"alarm {name}",
            ALARM_CLAIM,
            partial(_has_data, name=name, identifier=resource.identifier),
        )


def _has_data(deployment: Deployment, name: str, identifier: str) -> Finding:
    """Check that the metric of an alarm has data under the alarm's dimensions."""
    response = deployment.client("cloudwatch").describe_alarms(AlarmNames=[identifier])
    if not response["MetricAlarms"]:
        return decide(False, f"there is no alarm {identifier}")
    alarm: dict[str, Any] = response["MetricAlarms"][0]
    metric = alarm["Namespace"], alarm["MetricName"], alarm["Dimensions"]
    found = observed.values(deployment, *metric, statistic="SampleCount")
    dimensions = ", ".join(f"{pair['Name']}={pair['Value']}" for pair in alarm["Dimensions"])
    description = f"{alarm['Namespace']} {alarm['MetricName']} of {dimensions}"
    if found:
        return decide(True, description)
    if name in RARE:
        return unknown(f"{description}: {RARE[name]}")
    if deployment.started - deployment.stack.updated < YOUNG:
        return unknown(f"{description}: none yet, the stack changed less than half an hour ago")
    return decide(False, f"{description}: no data within a day")


def schedule_ran(deployment: Deployment) -> Finding:
    """Look for log lines of schedule events, which have no status."""
    resource_types = ("AWS::Events::Rule", "AWS::Scheduler::Schedule")
    if not any(map(deployment.of_type, resource_types)):
        return decide(False, "the stack has no schedule, so keys are never deleted")
    since = deployment.started - SCHEDULE
    pattern = "{ $.attempts >= 0 && $.status NOT EXISTS }"
    runs = [line for line in observed.lines(deployment, since, pattern) if not line.is_request]
    if not runs and deployment.started - deployment.stack.updated < SCHEDULE:
        return unknown("no run yet: it runs each hour, and the stack changed less than that ago")
    succeeded = sum(1 for run in runs if run.succeeded)
    return decide(succeeded > 0, f"{succeeded} of {len(runs)} runs succeeded within two hours")


SCHEDULED = Check("schedule", "Old idempotency keys are deleted each hour", schedule_ran)
