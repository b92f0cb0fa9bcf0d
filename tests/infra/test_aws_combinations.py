"""Every combination of parameters is a deployment that CloudFormation can read."""

import itertools
import json
from collections.abc import Iterator
from typing import Any

import pytest
from cfnlint.api import ManualArgs, lint  # type: ignore[import-untyped]  # no type hints

from tests.infra.deployment import Stack, deployment

CHOICES: dict[str, dict[str, dict[str, str]]] = {
    "connection": {
        "pgbouncer": {},
        "rds-proxy": {"Connection": "rds-proxy", "PoolerImage": "", "PoolerTlsSecret": ""},
    },
    "callers": {
        "IAM": {},
        "JWT": {
            "Authorization": "JWT",
            "JwtIssuer": "https://issuer.example",
            "JwtAudience": "orders",
        },
        "NONE": {"Authorization": "NONE"},
    },
    "network": {
        "made": {},
        "given": {
            "VpcId": "vpc-1",
            "SubnetIds": "subnet-1,subnet-2",
            "EndpointSecurityGroup": "sg-1",
            "TaskEndpointSecurityGroup": "sg-2",
        },
    },
    "architecture": {"x86_64": {}, "arm64": {"Architecture": "arm64"}},
}
COMBINATIONS = {
    ", ".join(names): {
        parameter: value
        for choice, name in zip(CHOICES.values(), names, strict=True)
        for parameter, value in choice[name].items()
    }
    for names in itertools.product(*CHOICES.values())
}
combination = pytest.mark.parametrize("parameters", COMBINATIONS.values(), ids=COMBINATIONS)


def intrinsics(value: Any) -> Iterator[str]:
    """Find the `Ref` and `Fn::…` that are left in a value."""
    if isinstance(value, dict):
        for key, member in value.items():
            if key == "Ref" or key.startswith("Fn::"):
                yield key
            yield from intrinsics(member)
    elif isinstance(value, list):
        for member in value:
            yield from intrinsics(member)


@combination
def test_every_combination_of_parameters_resolves(parameters: dict[str, str]) -> None:
    stack = deployment(**parameters)
    assert len(stack.resources) > 60
    assert not list(intrinsics(stack.resources))
    # DependsOn names existing resources.
    for path, resource in stack.resources.items():
        waited = resource.get("DependsOn", [])
        for name in [waited] if isinstance(waited, str) else waited:
            assert f"{path.rpartition('/')[0]}/{name}" in stack.resources, path


def translated(stack: Stack) -> Iterator[str]:
    """The translated templates, including those of nested stacks."""
    yield json.dumps(stack.template, sort_keys=True)
    for name, resource in stack.template["Resources"].items():
        if resource["Type"] == "AWS::CloudFormation::Stack" and stack.exists(resource):
            yield from translated(stack.stack(name))


@pytest.mark.timeout(300)  # ten seconds of CPU time
def test_cfn_lint_accepts_every_translated_combination() -> None:
    templates = {
        template
        for parameters in (*COMBINATIONS.values(), {"Canary": "false"})
        for template in translated(deployment(**parameters))
    }
    assert len(templates) >= 10
    # W2001: SAM uses a parameter up. W3002: nested templates are still local files.
    config = ManualArgs(regions=["eu-central-1"], ignore_checks=["W2001", "W3002"])
    matches = [str(match) for template in templates for match in lint(template, config=config)]
    assert not matches
