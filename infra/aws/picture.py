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
    """Yield a node for each security group, labelled with the start of its description."""
    network = template_file.read("network")["Resources"]
    groups = {
        **template_file.read("security")["Resources"],
        # With the names of security.yaml's parameters.
        "Endpoints": network["EndpointGroup"],
        "TaskEndpoints": network["TaskEndpointGroup"],
    }
    for name, resource in groups.items():
        if resource["Type"] == "AWS::EC2::SecurityGroup":
            label = resource["Properties"]["GroupDescription"].partition(";")[0]
            yield f'  {name}["{label}"]'


def group_name(reference: Any) -> str:
    """Return the name in a `!Ref`; of an `!If`, the one for a database that the stack creates."""
    name: str = reference["Fn::If"][1]["Ref"] if "Fn::If" in reference else reference["Ref"]
    return name


def connections() -> Iterator[str]:
    """Yield an arrow for each ingress rule, dotted if the rule exists only with RDS Proxy."""
    for resource in template_file.read("security")["Resources"].values():
        if resource["Type"] == "AWS::EC2::SecurityGroupIngress":
            rule = resource["Properties"]
            arrow = "-.->" if resource.get("Condition") == "UsesProxy" else "-->"
            source = group_name(rule["SourceSecurityGroupId"])
            target = group_name(rule["GroupId"])
            yield f"  {source} {arrow}|{rule['FromPort']}| {target}"


def calls() -> Iterator[tuple[str, str]]:
    """Yield each AWS service with the security group of the function that it calls."""
    for template, group in (("function", "Function"), ("migration", "Migration")):
        for resource in template_file.read(template)["Resources"].values():
            properties = resource.get("Properties", {})
            if resource["Type"] == "AWS::Lambda::Permission":
                yield properties["Principal"].partition(".")[0], group
            elif resource["Type"].startswith("Custom::"):
                yield "cloudformation", group
            for event in properties.get("Events", {}).values():
                yield {"Schedule": "events"}[event["Type"]], group


def picture() -> str:
    called = list(dict.fromkeys(calls()))
    callers = template_file.read("template")["Parameters"]["Authorization"]["AllowedValues"]
    return "\n".join(
        [
            "flowchart LR",
            f'  Caller(["Caller"]) -->|{" or ".join(callers)}| Api',
            *(f'  {name}["{label}"]' for name, label in SERVICES.values()),
            *nodes(),
            *(f"  {SERVICES[service][0]} --> {group}" for service, group in called),
            *connections(),
            "",
        ]
    )
