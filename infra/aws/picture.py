"""Generates the Mermaid diagram in docs/aws.md from the templates.

There is an arrow for each ingress rule between security groups and for each AWS service that calls
a function. A test checks that the diagram is current.
"""

from collections.abc import Iterator
from typing import Any

from infra.aws import template_file

SERVICES = {
    "apigateway": ("Api", "HTTP API"),
    "events": ("Schedule", "EventBridge schedule"),
    "cloudformation": ("CloudFormation", "CloudFormation"),
    "secretsmanager": ("Rotation", "Secrets Manager, monthly"),
}


def nodes() -> Iterator[str]:
    """Yield a node for each security group."""
    network = template_file.read("network")["Resources"]
    groups = {
        **template_file.read("security")["Resources"],
        # With the names of security.yaml's parameters.
        "Endpoints": network["EndpointGroup"],
        "TaskEndpoints": network["TaskEndpointGroup"],
    }
    for name, resource in groups.items():
        if resource["Type"] == "AWS::EC2::SecurityGroup":
            words = resource["Properties"]["GroupDescription"].partition(";")[0]
            yield f'  {name}["{words}"]'


def group(reference: Any) -> str:
    """Return the name in `!Ref Pooler`, or that of the database the templates create."""
    name: str = reference["Fn::If"][1]["Ref"] if "Fn::If" in reference else reference["Ref"]
    return name


def connections() -> Iterator[str]:
    """Yield an arrow for each ingress rule; dotted: only with RDS Proxy."""
    for resource in template_file.read("security")["Resources"].values():
        if resource["Type"] == "AWS::EC2::SecurityGroupIngress":
            rule = resource["Properties"]
            arrow = "-.->" if resource.get("Condition") == "UsesProxy" else "-->"
            source, target = group(rule["SourceSecurityGroupId"]), group(rule["GroupId"])
            yield f"  {source} {arrow}|{rule['FromPort']}| {target}"


def calls() -> Iterator[tuple[str, str]]:
    """Yield each AWS service with the security group of the function that it calls."""
    for template, where in (("function", "Function"), ("migration", "Migration")):
        for resource in template_file.read(template)["Resources"].values():
            properties = resource.get("Properties", {})
            if resource["Type"] == "AWS::Lambda::Permission":
                yield properties["Principal"].partition(".")[0], where
            elif resource["Type"].startswith("Custom::"):
                yield "cloudformation", where
            for event in properties.get("Events", {}).values():
                yield {"Schedule": "events"}[event["Type"]], where


def picture() -> str:
    called = list(dict.fromkeys(calls()))
    callers = template_file.read("template")["Parameters"]["Authorization"]["AllowedValues"]
    return "\n".join(
        [
            "flowchart LR",
            f'  Caller(["Caller"]) -->|{" or ".join(callers)}| Api',
            *(f'  {name}["{words}"]' for name, words in SERVICES.values()),
            *nodes(),
            *(f"  {SERVICES[service][0]} --> {where}" for service, where in called),
            *connections(),
            "",
        ]
    )
