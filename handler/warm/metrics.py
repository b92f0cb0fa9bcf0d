"""Embedded metric format (EMF): CloudWatch reads metrics from the log line, without an agent.

See "Specification: Embedded metric format" in the Amazon CloudWatch User Guide. Every set of
dimension values is a billed metric, so no dimension holds a value that a caller chooses.
"""

import json
from functools import cache
from typing import Any

_COUNTS = ("connections", "coldStarts", "retries", "failures")
#: Alarms use metrics by function. These are also kept by version, for rollouts, and by route.
_OF_VERSION_AND_ROUTE = ("durationMs", "failures")
Metric = dict[str, str]


class MetricBlock:
    """The EMF members of each log line of one version of a function."""

    def __init__(self, namespace: str, function: str, version: str) -> None:
        self._named = json.dumps({"function": function, "version": version})[1:-1]
        self._namespace = namespace
        self._rendered = cache(self._render)

    def members(self, seconds: float, *facts: bool) -> str:
        """Return members that make a JSON object metrics. `facts` are the arguments of `_render`.

        The object must already have the members that the metrics refer to.
        """
        return f"{self._rendered(*facts)}{int(seconds * 1000)}}}"

    def _render(
        self, routed: bool, connected: bool, queried: bool, failed: bool, is_cold: bool
    ) -> str:
        """Leave out times of what did not happen: zeros would distort the averages."""
        times = ["durationMs", *["connectMs"] * connected, *["queryMs"] * queried]
        metrics: list[Metric] = [
            *({"Name": name, "Unit": "Count"} for name in _COUNTS),
            *({"Name": name, "Unit": "Milliseconds"} for name in times),
        ]
        directives = [self._directive([["function"]], metrics)]
        of_version_and_route = [
            metric for metric in metrics if metric["Name"] in _OF_VERSION_AND_ROUTE
        ]
        dimensions = [["function", "version"], *[["function", "route"]] * routed]
        directives.append(self._directive(dimensions, of_version_and_route))
        if failed:
            failures = [metric for metric in metrics if metric["Name"] == "failures"]
            directives.append(self._directive([["function", "failure"]], failures))
        return (
            f', {self._named}, "coldStarts": {int(is_cold)}, "failures": {int(failed)}, '
            f'"_aws": {{"CloudWatchMetrics": {json.dumps(directives)}, "Timestamp": '
        )

    def _directive(self, dimensions: list[list[str]], metrics: list[Metric]) -> dict[str, Any]:
        return {"Namespace": self._namespace, "Dimensions": dimensions, "Metrics": metrics}
