"""Checks requests: responses, authentication, warm reads and cold starts."""

from __future__ import annotations

from datetime import timedelta
from statistics import median

from infra.aws.verify import observed, requests
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding, decide, unknown

#: How many reads to send, and how many warm ones to wait for.
READS, WARM_READS = 20, 10
#: Upper limits for warm reads and cold starts. In the lab, without the latency between zones, they
#: take 5 and 600 ms.
WARM_MS, COLD_MS = 100.0, 3000.0
#: How many warm reads may reconnect: a connection may be closed while a sandbox is idle.
MAX_RECONNECTED_SHARE = 0.1


def answers(deployment: Deployment) -> Finding:
    """Request `/health` and `/ready`."""
    health = requests.send(deployment, "/health", signed=False)
    if health.status in (401, 403):  # it needs authentication
        health = requests.send(deployment, "/health")
    if health.status != 200:
        return decide(False, f"/health: {health.status or health.body}")
    if reason := requests.cannot_sign(deployment):
        return unknown(f"/health: 200. {reason}")
    ready = requests.send(deployment, "/ready")
    return decide(ready.status == 200, f"/health: 200, /ready: {ready.status or ready.body}")


def refuses_strangers(deployment: Deployment) -> Finding:
    """Check that a request without credentials is refused."""
    read = requests.send(deployment, "/orders/1", signed=False)
    if read.status == 0:
        return unknown(read.body)
    outcome = f"{read.status} (Authorization={deployment.authorization})"
    return decide(read.status in (401, 403), f"unsigned GET /orders/1: {outcome}")


def _warm(deployment: Deployment) -> list[observed.Line] | Finding:
    """Return the log lines of warm reads, or the finding if there are none."""
    if reason := requests.cannot_sign(deployment):
        return unknown(reason)
    if not deployment.reads:
        statuses = [requests.send(deployment, "/orders/1").status for _ in range(READS)]
        deployment.reads.extend(observed.warm_reads(deployment, WARM_READS))
        if not deployment.reads:
            seconds = f"{observed.LOG_TIMEOUT_S:g} s"
            return unknown(f"no warm read in the log within {seconds}; status {statuses[0]}")
    return deployment.reads


def warm_read(deployment: Deployment) -> Finding:
    """Compare the median duration of warm reads with its limit."""
    lines = _warm(deployment)
    if isinstance(lines, Finding):
        return lines
    p50 = median(line.duration_ms for line in lines)
    return decide(p50 <= WARM_MS, f"p50 {p50:.1f} ms of {len(lines)} reads")


def one_connection(deployment: Deployment) -> Finding:
    """Check that warm reads open no connection and are not retried."""
    lines = _warm(deployment)
    if isinstance(lines, Finding):
        return lines
    opened = sum(1 for line in lines if line.connect_ms > 0)
    retried = sum(1 for line in lines if line.retries)
    holds = opened + retried <= MAX_RECONNECTED_SHARE * len(lines)
    return decide(holds, f"of {len(lines)} warm reads {opened} connected, {retried} were retried")


def cold_start(deployment: Deployment) -> Finding:
    """Compare the median duration of the init phase with its limit."""
    since = deployment.started - timedelta(days=1)
    durations = observed.cold_starts(deployment, since)
    if not durations:
        return unknown("no cold start within a day; CHANGES=1 causes one")
    p50 = median(durations)
    return decide(p50 <= COLD_MS, f"init phase p50 {p50:.0f} ms of {len(durations)}")


CHECKS = [
    Check("answers", "The function and the database behind it respond", answers),
    Check("strangers refused", "A request without credentials is refused", refuses_strangers),
    Check("warm read", f"A warm read takes the function {WARM_MS:g} ms or less", warm_read),
    Check("one connection", "A warm read opens no connection and is not retried", one_connection),
    Check("cold start", f"The init phase takes {COLD_MS:g} ms or less", cold_start),
]
