"""The deployment's parameters: from the command line, else the stack, else the template."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from infra.aws import budget, template_file

#: Parameters that the deployment sets itself.
DERIVED = {"FunctionImage", "MigrateImage", "PoolerImage", "PoolerTlsSecret", "S3PrefixList"}
DERIVED |= {"Release", "BudgetedConnections", "Prefix", "SecretVersions"}
#: Parameters whose value in the stack is ignored: protection is off during the first deployment,
#: and an emergency deployment without canary must not affect later ones.
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
REGIONAL = {"AlarmTopic", "Zones", "DatabaseAdminSecret", "DatabaseAdminSecretKey"}
#: Comma-separated lists.
LISTS = {"Zones", "SubnetIds", "JwtAudience"}
#: Parameter → the parameters that must be set with it.
REQUIRES = {
    "VpcId": ("SubnetIds", "EndpointSecurityGroup"),
    "DatabaseHost": ("DatabaseIdentifier", "DatabaseSecurityGroup", "DatabaseAdminSecret", "VpcId"),
}
#: Parameter → the parameters that only describe what it names.
DESCRIBED_BY = {
    "VpcId": ("SubnetIds", "EndpointSecurityGroup", "TaskEndpointSecurityGroup"),
    "DatabaseHost": (
        "DatabaseIdentifier",
        "DatabaseSecurityGroup",
        "DatabaseAdminSecret",
        "DatabaseAdminSecretKey",
    ),
}


@dataclass(frozen=True)
class Problem:
    """A reason why nothing can be deployed, and what to do about it."""

    cause: str
    hint: str


def declared() -> dict[str, dict[str, Any]]:
    """Return the parameters of template.yaml that a user may set."""
    parameters: dict[str, dict[str, Any]] = template_file.read("template")["Parameters"]
    return {name: parameter for name, parameter in parameters.items() if name not in DERIVED}


def parse(words: Sequence[str]) -> tuple[dict[str, str], list[Problem]]:
    """Return the parameters of the command line and a problem for each invalid word."""
    chosen: dict[str, str] = {}
    invalid: list[Problem] = []
    for word in words:
        name, equals, value = word.partition("=")
        if equals and name in declared():
            chosen[name] = value
            continue
        similar = difflib.get_close_matches(name, declared(), 1, 0.6)
        hint = f"Names: {', '.join(sorted(declared()))}"
        if similar:
            hint = f"Did you mean {similar[0]}=…?"
        invalid.append(Problem(f"{word!r} is not a parameter NAME=VALUE", hint))
    return chosen, invalid


def effective(chosen: Mapping[str, str], stored: Mapping[str, str]) -> dict[str, str]:
    """Return all parameters with their values. `stored` are those of the stack, if there is one.

    All of them are passed to SAM. It would keep the stack's value of a missing one, but the budget,
    the alarms and the images would be made for the template's default.
    """
    defaults = {
        name: str(parameter["Default"])
        for name, parameter in declared().items()
        if "Default" in parameter
    }
    kept = {k: v for k, v in stored.items() if k in defaults and k not in NOT_KEPT}
    merged = {**defaults, **kept, **chosen}
    return {name: _trimmed(v) if name in LISTS else v for name, v in merged.items()}


def _trimmed(value: str) -> str:
    """Remove the spaces around the members of a comma-separated list."""
    return ",".join(member.strip() for member in value.split(","))


def listed(value: str) -> list[str]:
    """Return the distinct members of a comma-separated list."""
    members = (member.strip() for member in value.split(","))
    return list(dict.fromkeys(filter(None, members)))


def has_shape(name: str, value: str, region: str) -> bool:
    """Return whether a value has the format of its parameter; an empty `region` allows any."""
    pattern = SHAPES[name][0].format(region=re.escape(region) if region else r"[a-z0-9-]+")
    is_complete = name not in LISTS or len(listed(value)) > 1
    return is_complete and bool(re.fullmatch(pattern, value))


def problems(values: Mapping[str, str], region: str = "") -> Iterator[Problem]:
    """Yield the values that CloudFormation or a resource would reject."""
    yield from _malformed(values, region)
    if values.get("InstanceClass") not in budget.MEMORY:
        yield Problem(
            f"InstanceClass={values.get('InstanceClass', '')} is not allowed",
            f"One of: {', '.join(budget.MEMORY)}. For another, add its memory to MEMORY in "
            "infra/aws/budget/inputs.py",
        )
    for name, parameter in declared().items():
        yield from _not_allowed(name, values.get(name, ""), parameter)
    yield from _incomplete(values)
    if values.get("Authorization") == "JWT":
        yield from _incomplete_jwt(values)
    elif values.get("JwtIssuer") or values.get("JwtAudience"):
        chosen = values["Authorization"]
        yield Problem(
            f"JwtIssuer and JwtAudience have no effect with Authorization={chosen}",
            "Add Authorization=JWT, or remove them: JwtIssuer= JwtAudience=",
        )


def _malformed(values: Mapping[str, str], region: str) -> Iterator[Problem]:
    for name, (_, meaning) in SHAPES.items():
        value = values.get(name, "")
        if value and not has_shape(name, value, region):
            where = f" in {region}" if region and name in REGIONAL else ""
            yield Problem(f"{name}={value} is not allowed", f"Use {meaning}{where}")


def _not_allowed(name: str, value: str, parameter: Mapping[str, Any]) -> Iterator[Problem]:
    if "AllowedValues" in parameter:
        allowed = [str(option) for option in parameter["AllowedValues"]]
        if value not in allowed:
            yield Problem(f"{name}={value} is not allowed", f"One of: {', '.join(allowed)}")
    elif parameter["Type"] == "Number":
        lowest, highest = parameter.get("MinValue", 0), parameter.get("MaxValue", 2**31)
        if not value.isdecimal() or not lowest <= int(value) <= highest:
            limit = f" to {highest}" if "MaxValue" in parameter else " or more"
            yield Problem(f"{name}={value} is not allowed", f"A number, {lowest}{limit}")


def _incomplete(values: Mapping[str, str]) -> Iterator[Problem]:
    """Yield the parameters that cannot be used without others that are empty."""
    for name, needed in REQUIRES.items():
        missing = [other for other in needed if not values.get(other)]
        if values.get(name) and missing:
            yield Problem(f"{name} needs {' and '.join(missing)}", f"Add {'=… '.join(missing)}=…")
    for name, dependents in DESCRIBED_BY.items():
        unused = [other for other in dependents if values.get(other)]
        if unused and not values.get(name):
            yield Problem(
                f"{' and '.join(unused)} cannot be used without {name}",
                f"Add {name}=…, or remove {'them' if len(unused) > 1 else 'it'}: "
                f"{'= '.join(unused)}=",
            )


def _incomplete_jwt(values: Mapping[str, str]) -> Iterator[Problem]:
    missing = [name for name in ("JwtIssuer", "JwtAudience") if not values.get(name)]
    if missing:
        yield Problem(
            f"Authorization=JWT needs {' and '.join(missing)}",
            "JwtIssuer is the https:// address with /.well-known/openid-configuration, "
            "JwtAudience the `aud` or `client_id` of the tokens",
        )
    elif not values["JwtIssuer"].startswith("https://"):
        yield Problem(
            f"JwtIssuer={values['JwtIssuer']} is not an https:// address",
            "Use the `iss` of the tokens",
        )
