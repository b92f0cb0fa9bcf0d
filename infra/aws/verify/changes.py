"""The checks that modify the deployment (CHANGES=1): a version, a rotation, an order sent twice."""

from __future__ import annotations

import json
import time
import uuid
from contextlib import ExitStack

from infra.aws.verify import requests
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding, decide, unknown

#: How long a rotation may take, and how often to check, in seconds.
ROTATION_TIMEOUT_S, POLLING_INTERVAL_S = 180.0, 3.0


def new_version(deployment: Deployment) -> Finding:
    """Publish a version and send it a request; then delete it and restore the description."""
    client, function = deployment.client("lambda"), deployment.named("Function/Function")
    configuration = client.get_function_configuration(FunctionName=function)
    previous_description = configuration.get("Description", "")
    # Lambda publishes a version only if something has changed since the previous one.
    description = f"make verify {uuid.uuid4()}"
    with ExitStack() as undo:
        client.update_function_configuration(FunctionName=function, Description=description)
        undo.callback(
            client.update_function_configuration,
            FunctionName=function,
            Description=previous_description,
        )
        client.get_waiter("function_updated_v2").wait(FunctionName=function)
        version = client.publish_version(FunctionName=function)["Version"]
        undo.callback(client.delete_function, FunctionName=function, Qualifier=version)
        client.get_waiter("published_version_active").wait(FunctionName=function, Qualifier=version)
        payload = json.dumps(_event("/ready")).encode()
        response = client.invoke(FunctionName=function, Qualifier=version, Payload=payload)
        result = json.loads(response["Payload"].read() or b"null")
        status = result.get("statusCode") if isinstance(result, dict) else None
        outcome = response.get("FunctionError") or status
        return decide(outcome == 200, f"version {version} answered /ready with {outcome}")


def _event(path: str) -> dict[str, object]:
    """Return a GET event in payload format 2.0."""
    http = {"method": "GET", "path": path, "protocol": "HTTP/1.1", "sourceIp": "127.0.0.1"}
    context = {"http": http, "stage": "$default", "domainName": "verify", "requestId": "verify"}
    return {
        "version": "2.0",
        "rawPath": path,
        "rawQueryString": "",
        "headers": {},
        "requestContext": context,
        "isBase64Encoded": False,
    }


def rotation(deployment: Deployment) -> Finding:
    """Rotate the password, then send a request that needs the database."""
    client, secret = deployment.client("secretsmanager"), deployment.stack.outputs["AppSecret"]
    version = client.rotate_secret(SecretId=secret)["VersionId"]
    end = time.monotonic() + ROTATION_TIMEOUT_S
    while True:
        stages = client.describe_secret(SecretId=secret)["VersionIdsToStages"]
        if "AWSCURRENT" in stages.get(version, []):
            break
        if time.monotonic() > end:
            return decide(False, f"not done within {ROTATION_TIMEOUT_S:g} s: see the log of Rotate")
        time.sleep(POLLING_INTERVAL_S)
    if reason := requests.cannot_sign(deployment):
        return unknown(f"rotated. {reason}")
    response = requests.send(deployment, "/ready")
    outcome = response.status or response.body
    return decide(response.status == 200, f"rotated, then /ready: {outcome}")


# --- only in the sample ---
def order_twice(deployment: Deployment) -> Finding:
    """Send one request twice and check that it creates one order."""
    if reason := requests.cannot_sign(deployment):
        return unknown(reason)
    key, order = f"verify-{uuid.uuid4()}", {"customer_name": "make verify"}
    first, second = (
        requests.send(deployment, "/orders", order, Idempotency_Key=key) for _ in range(2)
    )
    if first.status != 201:
        return decide(False, f"POST /orders: {first.status or first.body}")
    same = second.status == 201 and second.json().get("id") == first.json().get("id")
    replayed = second.headers.get("idempotency-replayed") == "true"
    return decide(
        same and replayed, f"order {first.json().get('id')}, then {second.json().get('id')}"
    )


# --- end: only in the sample ---
CHECKS = [
    Check("new version", "A published version starts and answers", new_version),
    Check("rotation", "Requests succeed after a rotation of the password", rotation),
    # --- only in the sample ---
    Check("order twice", "An order that is sent twice is placed once", order_twice),
    # --- end: only in the sample ---
]
