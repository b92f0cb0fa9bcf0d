"""Evaluates the templates as CloudFormation would, without AWS.

SAM's translator transforms each template; then conditions are evaluated and references followed
into nested stacks. A resource is named by its path, such as `Security/Function`.
"""

import copy
import re
from functools import cached_property
from typing import Any, ClassVar

import boto3
import pytest
from samtranslator.parser.parser import Parser
from samtranslator.translator.translator import Translator

from infra.aws import template_file
from infra.local import ROOT

#: Parameters that `make deploy` adds to the defaults.
IMAGES = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/warm-engine"
DEPLOYED = {
    "FunctionImage": f"{IMAGES}/function@sha256:{'1' * 64}",
    "MigrateImage": f"{IMAGES}/migrate@sha256:{'2' * 64}",
    "PoolerImage": f"{IMAGES}/pooler@sha256:{'3' * 64}",
    "PoolerTlsSecret": "arn:aws:secretsmanager:eu-central-1:123456789012:secret:tls",
    "Release": "1",
    "S3PrefixList": "pl-12345678",
}
NO_VALUE = object()


def translate(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    """Return the template after SAM's transform."""
    template = copy.deepcopy(template_file.read(name))
    if "Transform" not in template:
        return template
    strings = {key: str(value) for key, value in parameters.items()}
    translator = Translator({}, Parser(), boto_session=boto3.Session(region_name="eu-central-1"))
    translated: dict[str, Any] = translator.translate(template, strings)
    return translated


class Stack:
    """One template with its parameters; `stack("Pooler")` is a nested stack."""

    PSEUDO: ClassVar = {
        "AWS::Region": "eu-central-1",
        "AWS::AccountId": "123456789012",
        "AWS::StackId": "arn:aws:cloudformation:eu-central-1:123456789012:stack/warm/1a2b3c4d-5e6f",
        "AWS::Partition": "aws",
        "AWS::URLSuffix": "amazonaws.com",
        "AWS::NoValue": NO_VALUE,
    }

    def __init__(self, template: str, path: str = "", **parameters: Any) -> None:
        declarations = template_file.read(template).get("Parameters", {})
        assert parameters.keys() <= declarations.keys(), parameters.keys() - declarations.keys()
        self.path = path
        self.parameters: dict[str, Any] = {}
        for name, declaration in declarations.items():
            value = parameters.get(name, declaration.get("Default"))
            assert value is not None, f"{template}.yaml: the parameter {name} has no value"
            is_list = declaration["Type"].startswith(("List<", "CommaDelimitedList"))
            if is_list and isinstance(value, str):
                value = [member.strip() for member in value.split(",")]
            self.parameters[name] = value
        self.template = translate(template, self.parameters)
        self._stacks: dict[str, Stack] = {}

    def stack(self, name: str) -> "Stack":
        if name not in self._stacks:
            resource = self.template["Resources"][name]
            assert resource["Type"] == "AWS::CloudFormation::Stack"
            assert self.exists(resource), f"{name} is not created"
            properties = resource["Properties"]
            self._stacks[name] = Stack(
                properties["TemplateURL"].removesuffix(".yaml"),
                f"{self.path}{name}/",
                **self.resolve(properties.get("Parameters", {})),
            )
        return self._stacks[name]

    def exists(self, resource: dict[str, Any]) -> bool:
        return "Condition" not in resource or self.condition(resource["Condition"])

    def condition(self, name: str) -> bool:
        is_met: bool = self.resolve(self.template["Conditions"][name])
        return is_met

    @cached_property
    def resources(self) -> dict[str, dict[str, Any]]:
        """Map the paths of all resources, including those of nested stacks, to the resources."""
        resources: dict[str, dict[str, Any]] = {}
        for name, resource in self.template["Resources"].items():
            if not self.exists(resource):
                continue
            if resource["Type"] == "AWS::CloudFormation::Stack":
                resources |= self.stack(name).resources
            else:
                resources[f"{self.path}{name}"] = self.resolve(resource)
        return resources

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Map the paths of all resources of a type to their properties."""
        return {
            path: resource.get("Properties", {})
            for path, resource in self.resources.items()
            if resource["Type"] == kind
        }

    def output(self, name: str) -> Any:
        return self.resolve(self.template["Outputs"][name]["Value"])

    def resolve(self, value: Any) -> Any:
        """Evaluate the intrinsic functions in a value."""
        match value:
            case list():
                return [item for item in map(self.resolve, value) if item is not NO_VALUE]
            case {"Ref": str(name)}:
                return self.reference(name)
            case {"Condition": str(name)} if len(value) == 1:
                return self.condition(name)
            case {"Fn::GetAtt": [name, attribute]}:
                return self.attribute(name, attribute)
            case {"Fn::If": [name, yes, no]}:
                return self.resolve(yes if self.condition(name) else no)
            case {"Fn::Equals": [first, second]}:
                return str(self.resolve(first)) == str(self.resolve(second))
            case {"Fn::Not": [operand]}:
                return not self.resolve(operand)
            case {"Fn::Sub": [text, names]}:
                return self.substitute(text, names)
            case {"Fn::Sub": text}:
                return self.substitute(text, {})
            case {"Fn::Join": [separator, parts]}:
                return separator.join(map(str, self.resolve(parts)))
            case {"Fn::Split": [separator, text]}:
                return str(self.resolve(text)).split(separator)
            case {"Fn::Select": [index, values]}:
                values, index = self.resolve(values), int(index)
                return values[index] if index < len(values) else f"{values}[{index}]"
            case {"Fn::GetAZs": _}:
                return ["eu-central-1a", "eu-central-1b"]
            case dict():
                resolved = {key: self.resolve(member) for key, member in value.items()}
                return {key: member for key, member in resolved.items() if member is not NO_VALUE}
        return value

    def reference(self, name: str) -> Any:
        if name in self.parameters:
            return self.parameters[name]
        if name == "AWS::StackName":
            return f"warm-engine-{self.path.strip('/')}"
        if name in self.PSEUDO:
            return self.PSEUDO[name]
        assert name in self.template["Resources"], name
        return f"{self.path}{name}"

    def attribute(self, name: str, attribute: str) -> Any:
        if self.template["Resources"][name]["Type"] == "AWS::CloudFormation::Stack":
            return self.stack(name).output(attribute.removeprefix("Outputs."))
        return f"{self.path}{name}.{attribute}"

    def substitute(self, text: str, names: dict[str, Any]) -> str:
        def replacement(match: re.Match[str]) -> str:
            name = match[1]
            if name in names:
                return str(self.resolve(names[name]))
            return str(self.attribute(*name.split(".", 1)) if "." in name else self.reference(name))

        return re.sub(r"\$\{([\w.:]+)\}", replacement, text)


def deployment(**parameters: Any) -> Stack:
    """Build the whole deployment as `make deploy` would with these parameters."""
    return Stack("template", **{**DEPLOYED, **parameters})


WITH_PGBOUNCER = deployment()
WITH_PROXY = deployment(Connection="rds-proxy", PoolerImage="", PoolerTlsSecret="")
BOTH = pytest.mark.parametrize(
    "stack", [WITH_PGBOUNCER, WITH_PROXY], ids=["pgbouncer", "rds-proxy"]
)
INI = dict(re.findall(r"^(\w+) = (\w+)$", (ROOT / "pgbouncer/pgbouncer.ini").read_text(), re.M))


def only(resources: dict[str, Any]) -> Any:
    """Return the value of a dictionary with one item."""
    assert len(resources) == 1, list(resources)
    return next(iter(resources.values()))


def environment(stack: Stack) -> dict[str, str]:
    """Return the function's environment variables."""
    variables = stack.resources["Function/Function"]["Properties"]["Environment"]["Variables"]
    return {name: str(value) for name, value in variables.items()}
