"""The deployment's parameters, from the command line, else the stack, else the template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.aws import budget, template_file

#: Parameters that the deployment sets itself.
OURS = {"FunctionImage", "MigrateImage", "PoolerImage", "PoolerTlsSecret", "S3PrefixList"}
OURS |= {"Release", "BudgetedConnections", "Prefix", "SecretVersions"}
#: Not taken from the stack: protection is off during the first deployment, and an emergency
#: deployment without canary must not affect later ones.
NOT_KEPT = {"DeletionProtection", "Canary"}
#: Parameter → the pattern of a non-empty value (`{region}` is the deployment's region), and its
#: meaning. CloudFormation would reject a malformed value only when it creates the resource.
SHAPES = {
    "AlarmTopic": (r"arn:[\w-]+:sns:{region}:\d{{12}}:[\w.-]+", "the ARN of an SNS topic"),
    "Zones": (r"{region}[a-z],{region}[a-z]", "two comma-separated availability zones"),
    "VpcId": (r"vpc-[0-9a-f]{{8,17}}", "the ID of a VPC"),
    "SubnetIds": (
        r"subnet-[0-9a-f]{{8,17}}(,subnet-[0-9a-f]{{8,17}})+",
        "the comma-separated IDs of two or more subnets",
    ),
    "EndpointSecurityGroup": (r"sg-[0-9a-f]{{8,17}}", "the ID of a security group"),
    "TaskEndpointSecurityGroup": (r"sg-[0-9a-f]{{8,17}}", "the ID of a security group"),
    "DatabaseSecurityGroup": (r"sg-[0-9a-f]{{8,17}}", "the ID of a security group"),
    "DatabaseHost": (r"[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)*", "a host name without port"),
    "DatabaseAdminSecret": (
        r"arn:[\w-]+:secretsmanager:{region}:\d{{12}}:secret:\S+",
        "the ARN of a secret",
    ),
    "DatabaseAdminSecretKey": (
        r"arn:[\w-]+:kms:{region}:\d{{12}}:key/[\w-]+",
        "the ARN of a KMS key (not of an alias)",
    ),
}
#: Parameters whose values contain the region.
_REGIONAL = {"AlarmTopic", "Zones", "DatabaseAdminSecret", "DatabaseAdminSecretKey"}
#: Parameter → the parameters that must be set with it.
REQUIRES = {
    "VpcId": ("SubnetIds", "EndpointSecurityGroup"),
    "DatabaseHost": (
        "DatabaseIdentifier",
        "DatabaseSecurityGroup",
        "DatabaseAdminSecret",
        "VpcId",
    ),
}
#: Parameter → the parameters that only describe what it names.
DESCRIBES = {
    "VpcId": ("SubnetIds", "EndpointSecurityGroup", "TaskEndpointSecurityGroup"),
    "DatabaseHost": (
        "DatabaseIdentifier",
        "DatabaseSecurityGroup",
        "DatabaseAdminSecret",
        "DatabaseAdminSecretKey",
    ),
}
#: Comma-separated lists.
LISTS = {"Zones", "SubnetIds", "JwtAudience"}


@dataclass(frozen=True)
class Fault:
    """A reason why nothing can be deployed, and how to solve it."""

    what: str
    remedy: str


def declared() -> dict[str, dict[str, Any]]:
    """Return the parameters of template.yaml that a user may set."""
    found: dict[str, dict[str, Any]] = template_file.read("template")["Parameters"]
    return {name: each for name, each in found.items() if name not in OURS}


def parse(words: Sequence[str]) -> tuple[dict[str, str], list[Fault]]:
    """Return the parameters of the command line and a fault for each invalid word."""
    chosen, faults = {}, []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in declared():
            chosen[name] = value
            continue
        near = difflib.get_close_matches(name, declared(), 1, 0.6)
        remedy = f"Did you mean {near[0]}=…?" if near else f"Names: {', '.join(sorted(declared()))}"
        faults.append(Fault(f"{word!r} is not a parameter NAME=VALUE", remedy))
    return chosen, faults


def effective(chosen: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """Return all parameters with their values. `stored` are those of the stack, if there is one.

    All of them are passed to SAM, which would otherwise keep the stack's values while the budget,
    the alarms and the images are made for the template's defaults.
    """
    defaults = {
        name: str(each["Default"]) for name, each in declared().items() if "Default" in each
    }
    kept = {k: v for k, v in stored.items() if k in defaults and k not in NOT_KEPT}
    merged = {**defaults, **kept, **chosen}
    return {name: _trimmed(v) if name in LISTS else v for name, v in merged.items()}


def _trimmed(value: str) -> str:
    """Remove the spaces around the members of a comma-separated list."""
    return ",".join(member.strip() for member in value.split(","))


def listed(value: str) -> list[str]:
    """Return the distinct members of a comma-separated list."""
    return list(dict.fromkeys(each.strip() for each in value.split(",") if each.strip()))


def has_shape(name: str, value: str, region: str) -> bool:
    """Return whether a value has the format of its parameter; an empty `region` allows any."""
    pattern = SHAPES[name][0].format(region=re.escape(region) if region else r"[a-z0-9-]+")
    is_complete = name not in LISTS or len(listed(value)) > 1
    return is_complete and bool(re.fullmatch(pattern, value))


def _shape_faults(values: Mapping[str, str], region: str) -> Iterator[Fault]:
    for name, (_, meaning) in SHAPES.items():
        value = values.get(name, "")
        if value and not has_shape(name, value, region):
            where = f" in {region}" if region and name in _REGIONAL else ""
            yield Fault(f"{name}={value} is not allowed", f"Use {meaning}{where}")


def _incomplete_groups(values: Mapping[str, str]) -> Iterator[Fault]:
    """Yield parameters that cannot be used without others that are empty."""
    for name, needed in REQUIRES.items():
        missing = [other for other in needed if not values.get(other)]
        if values.get(name) and missing:
            yield Fault(f"{name} needs {' and '.join(missing)}", f"Add {'=… '.join(missing)}=…")
    for name, dependents in DESCRIBES.items():
        unused = [other for other in dependents if values.get(other)]
        if unused and not values.get(name):
            yield Fault(
                f"{' and '.join(unused)} cannot be used without {name}",
                f"Add {name}=…, or remove {'them' if len(unused) > 1 else 'it'}: "
                f"{'= '.join(unused)}=",
            )


def faults(values: Mapping[str, str], region: str = "") -> Iterator[Fault]:
    """Yield the values that CloudFormation or a resource would reject."""
    yield from _shape_faults(values, region)
    if values.get("InstanceClass") not in budget.MEMORY:
        yield Fault(
            f"InstanceClass={values.get('InstanceClass', '')} is not allowed",
            f"One of: {', '.join(budget.MEMORY)}. For another, add its memory to MEMORY in "
            "infra/aws/budget.py",
        )
    for name, each in declared().items():
        value = values.get(name, "")
        if "AllowedValues" in each:
            allowed = [str(one) for one in each["AllowedValues"]]
            if value not in allowed:
                yield Fault(f"{name}={value} is not allowed", f"One of: {', '.join(allowed)}")
        elif each["Type"] == "Number":
            lowest, highest = each.get("MinValue", 0), each.get("MaxValue", 2**31)
            if not value.isdecimal() or not lowest <= int(value) <= highest:
                most = f" to {highest}" if "MaxValue" in each else " or more"
                yield Fault(f"{name}={value} is not allowed", f"A number, {lowest}{most}")
    yield from _incomplete_groups(values)
    if values.get("Authorization") == "JWT":
        missing = [name for name in ("JwtIssuer", "JwtAudience") if not values.get(name)]
        if missing:
            yield Fault(
                f"Authorization=JWT needs {' and '.join(missing)}",
                "JwtIssuer is the https:// address with /.well-known/openid-configuration, "
                "JwtAudience the `aud` or `client_id` of the tokens",
            )
        elif not values["JwtIssuer"].startswith("https://"):
            yield Fault(
                f"JwtIssuer={values['JwtIssuer']} is not an https:// address",
                "Use the `iss` of the tokens",
            )
