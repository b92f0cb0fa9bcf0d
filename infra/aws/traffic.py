"""The hook that tests a new version before CodeDeploy sends it traffic.

If it reports `Failed`, all traffic stays on the old version. If it reports `Succeeded`, CodeDeploy
shifts the traffic, and the alarms of function.yaml can still roll the version back. CodeDeploy does
not call the hook for the first deployment, which has no old version.
"""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import boto3
from botocore.config import Config

log = logging.getLogger(__name__)

#: Path and query string of each request. The first checks the connection through the pooler, the
#: second that the application may read its tables.
REQUESTS = (("/ready", ""), ("/orders", "limit=1"))
#: Seconds to wait for a response: enough for a cold start. CodeDeploy waits for an hour.
READ_TIMEOUT = 30


def handler(event: dict[str, str], context: Any) -> None:
    reasons = list(failures(os.environ["NEW_VERSION"]))
    for reason in reasons:
        log.error("%s", reason)
    boto3.client("codedeploy").put_lifecycle_event_hook_execution_status(
        deploymentId=event["DeploymentId"],
        lifecycleEventHookExecutionId=event["LifecycleEventHookExecutionId"],
        status="Failed" if reasons else "Succeeded",
    )


def failures(version: str) -> Iterator[str]:
    """Send REQUESTS to `version` and yield one line for each failure."""
    config = Config(read_timeout=READ_TIMEOUT, retries={"total_max_attempts": 1})
    client = boto3.client("lambda", config=config)
    for path, query in REQUESTS:
        try:
            response = client.invoke(
                FunctionName=version, Payload=json.dumps(http_event(path, query)).encode()
            )
            payload = json.load(response["Payload"])
        except Exception as error:  # report it: without a status CodeDeploy waits for an hour
            yield f"GET {path}: {type(error).__name__}: {error}"
            continue
        if "FunctionError" in response:
            yield f"GET {path}: {payload.get('errorType')}, see the function's log"
        elif payload.get("statusCode") != 200:
            yield f"GET {path}: {payload.get('statusCode')} {payload.get('body')}"


def http_event(path: str, query: str) -> dict[str, Any]:
    """Return an HTTP API event in payload format 2.0."""
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": path,
        "rawQueryString": query,
        "headers": {"host": "before-traffic", "user-agent": "warm-engine-before-traffic"},
        "requestContext": {
            "http": {
                "method": "GET",
                "path": path,
                "protocol": "HTTP/1.1",
                "sourceIp": "127.0.0.1",
                "userAgent": "warm-engine-before-traffic",
            },
            "requestId": "before-traffic",
            "stage": "$default",
        },
        "isBase64Encoded": False,
    }
