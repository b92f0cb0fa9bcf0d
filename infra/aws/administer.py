"""`make administer`: runs SQL as the database's administrator, or the migrations, on AWS.

`python -m infra.aws.administer [SQL]` runs the task of migration.yaml inside the VPC and prints its
output. Without SQL it migrates. `STACK` is the stack's name, by default warm-engine. Do not put a
password into the statement: CloudTrail records it. The task's log keeps the rows for a day.
"""

from __future__ import annotations

import sys

import boto3
from botocore.exceptions import ClientError

from infra.aws import account, stacks
from infra.aws.account import OperatorError, error_code

#: Seconds between two polls of the task, and the number of polls: it is the operator who stops
#: waiting, with Ctrl-C.
POLL_SECONDS, POLLS = 6, 100_000
#: Outputs of migration.yaml that the task needs.
OUTPUTS = ("Cluster", "Task", "TaskLog", "SubnetIds", "SecurityGroup")


def main() -> int:
    return account.command("administer", lambda: administer(sys.argv[1:], stacks.chosen_name()))


def administer(command: list[str], stack: str) -> int:
    """Run the task with `command`, print its log and return its exit code."""
    session = boto3.Session(region_name=account.resolve_region())
    outputs, ecs = migration_outputs(session, stack), session.client("ecs")
    started = ecs.run_task(
        cluster=outputs["Cluster"],
        taskDefinition=outputs["Task"],
        launchType="FARGATE",
        networkConfiguration={
            "awsvpcConfiguration": {
                "subnets": outputs["SubnetIds"].split(","),
                "securityGroups": [outputs["SecurityGroup"]],
                "assignPublicIp": "DISABLED",
            }
        },
        overrides={"containerOverrides": [{"name": "administer", "command": command}]},
    )
    if not started["tasks"]:
        raise OperatorError(f"ECS started no task: {started['failures']}")
    arn = started["tasks"][0]["taskArn"]
    print(
        f"started task {arn}; its output follows in a minute or two …", file=sys.stderr, flush=True
    )
    cluster, tasks = outputs["Cluster"], [arn]
    ecs.get_waiter("tasks_stopped").wait(
        cluster=cluster, tasks=tasks, WaiterConfig={"Delay": POLL_SECONDS, "MaxAttempts": POLLS}
    )
    print_log(session, outputs["TaskLog"], f"task/administer/{arn.rpartition('/')[2]}")
    task = ecs.describe_tasks(cluster=cluster, tasks=tasks)["tasks"][0]
    code = task["containers"][0].get("exitCode")
    if code is None:  # the container never ran
        raise OperatorError(f"the task did not start: {task.get('stoppedReason')}")
    return int(code)


def migration_outputs(session: boto3.Session, stack: str) -> dict[str, str]:
    """Return the outputs of the nested stack of migration.yaml.

    Raises OperatorError if some are missing, because the stack was not created completely.
    """
    root = stacks.get(session, stack)
    outputs: dict[str, str] = {}
    try:
        resource = stacks.client(session).describe_stack_resource(
            StackName=root.name, LogicalResourceId="Migration"
        )
        identifier = resource["StackResourceDetail"].get("PhysicalResourceId", "")
        nested = stacks.find(session, identifier) if identifier else None
        outputs = nested.outputs if nested else {}
    except ClientError as error:
        if error_code(error) != "ValidationError":  # "Resource Migration does not exist …"
            raise
    missing = [name for name in OUTPUTS if name not in outputs]
    if missing:
        raise OperatorError(
            f"the stack {stack} ({root.status}) has no task to run: its nested stack Migration "
            f"has no output {', '.join(missing)}. Run `make deploy STACK={stack}` first"
        )
    return outputs


def print_log(session: boto3.Session, group: str, stream: str) -> None:
    client = session.client("logs")
    try:
        pages = client.get_paginator("filter_log_events").paginate(
            logGroupName=group, logStreamNames=[stream]
        )
        for page in pages:
            for event in page["events"]:
                print(event["message"])
    except client.exceptions.ResourceNotFoundException:
        return  # the task has written nothing


if __name__ == "__main__":
    sys.exit(main())
