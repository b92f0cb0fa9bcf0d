"""The deployment as CloudFormation would see it, without AWS: each template through SAM's
translator, conditions decided, references followed from stack to stack. A resource is known by its
place: `Security/Function`."""

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

#: What `make deploy` adds to the defaults.
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
    """What CloudFormation gets of a template."""
    template = copy.deepcopy(template_file.read(name))
    if "Transform" not in template:
        return template
    strings = {key: str(value) for key, value in parameters.items()}
    session = boto3.Session(region_name="eu-central-1")
    translator = Translator({}, Parser(), boto_session=session)
    translated: dict[str, Any] = translator.translate(template, strings)
    return translated


class Stack:
    """One template with its parameters; `stack("Pooler")` is a stack within it."""

    PSEUDO: ClassVar = {
        "AWS::Region": "eu-central-1",
        "AWS::AccountId": "123456789012",
        "AWS::Partition": "aws",
        "AWS::URLSuffix": "amazonaws.com",
        "AWS::NoValue": NO_VALUE,
    }

    def __init__(self, template: str, place: str = "", **parameters: Any) -> None:
        declared = template_file.read(template).get("Parameters", {})
        assert parameters.keys() <= declared.keys(), parameters.keys() - declared.keys()
        self.place = place
        self.parameters: dict[str, Any] = {}
        for name, each in declared.items():
            value = parameters.get(name, each.get("Default"))
            assert value is not None, f"{template}.yaml is not given {name}"
            if each["Type"].startswith("List<") and isinstance(value, str):
                value = value.split(",")
            self.parameters[name] = value
        self.template = translate(template, self.parameters)
        self._stacks: dict[str, Stack] = {}

    def stack(self, name: str) -> "Stack":
        if name not in self._stacks:
            resource = self.template["Resources"][name]
            assert resource["Type"] == "AWS::CloudFormation::Stack"
            assert self.exists(resource), f"{name} is not made"
            inner = resource["Properties"]
            self._stacks[name] = Stack(
                inner["TemplateURL"].removesuffix(".yaml"),
                f"{self.place}{name}/",
                **{key: self.resolve(value) for key, value in inner["Parameters"].items()}
                if "Parameters" in inner
                else {},
            )
        return self._stacks[name]

    def exists(self, resource: dict[str, Any]) -> bool:
        return "Condition" not in resource or self.condition(resource["Condition"])

    def condition(self, name: str) -> bool:
        decided: bool = self.resolve(self.template["Conditions"][name])
        return decided

    @cached_property
    def resources(self) -> dict[str, dict[str, Any]]:
        """Place → resource, of this stack and all within it."""
        found: dict[str, dict[str, Any]] = {}
        for name, resource in self.template["Resources"].items():
            if not self.exists(resource):
                continue
            if resource["Type"] == "AWS::CloudFormation::Stack":
                found |= self.stack(name).resources
            else:
                found[f"{self.place}{name}"] = self.resolve(resource)
        return found

    def of_type(self, kind: str) -> dict[str, dict[str, Any]]:
        """Place → properties of every resource of a type."""
        return {
            place: resource.get("Properties", {})
            for place, resource in self.resources.items()
            if resource["Type"] == kind
        }

    def output(self, name: str) -> Any:
        return self.resolve(self.template["Outputs"][name]["Value"])

    def resolve(self, value: Any) -> Any:
        if isinstance(value, list):
            return [each for each in map(self.resolve, value) if each is not NO_VALUE]
        if not isinstance(value, dict):
            return value
        if len(value) == 1:
            ((key, argument),) = value.items()
            function = getattr(self, f"_{key.removeprefix('Fn::').lower()}", None)
            if function and (key.startswith("Fn::") or key in ("Ref", "Condition")):
                return function(argument)
        resolved = {key: self.resolve(each) for key, each in value.items()}
        return {key: each for key, each in resolved.items() if each is not NO_VALUE}

    def _ref(self, name: str) -> Any:
        if name in self.parameters:
            return self.parameters[name]
        if name == "AWS::StackName":
            return f"warm-engine-{self.place.strip('/')}"
        if name in self.PSEUDO:
            return self.PSEUDO[name]
        assert name in self.template["Resources"], name
        return f"{self.place}{name}"

    def _getatt(self, argument: list[str]) -> Any:
        name, attribute = argument
        resource = self.template["Resources"][name]
        if resource["Type"] == "AWS::CloudFormation::Stack":
            return self.stack(name).output(attribute.removeprefix("Outputs."))
        return f"{self.place}{name}.{attribute}"

    def _condition(self, name: str) -> bool:
        return self.condition(name)

    def _if(self, argument: list[Any]) -> Any:
        name, yes, no = argument
        return self.resolve(yes if self.condition(name) else no)

    def _equals(self, argument: list[Any]) -> bool:
        one, other = self.resolve(argument)
        return str(one) == str(other)

    def _not(self, argument: list[Any]) -> bool:
        return not self.resolve(argument)[0]

    def _sub(self, argument: Any) -> str:
        text, names = argument if isinstance(argument, list) else (argument, {})

        def known(match: re.Match[str]) -> str:
            name = match[1]
            if name in names:
                return str(self.resolve(names[name]))
            return str(self._getatt(name.split(".", 1)) if "." in name else self._ref(name))

        return re.sub(r"\$\{([\w.:]+)\}", known, text)

    def _join(self, argument: list[Any]) -> str:
        glue, parts = self.resolve(argument)
        return str(glue).join(map(str, parts))

    def _split(self, argument: list[Any]) -> list[str]:
        glue, text = self.resolve(argument)
        return str(text).split(glue)

    def _select(self, argument: list[Any]) -> Any:
        index, values = self.resolve(argument)
        return values[int(index)] if int(index) < len(values) else f"{values}[{index}]"

    def _getazs(self, _: Any) -> list[str]:
        return ["eu-central-1a", "eu-central-1b"]


def deployment(**parameters: Any) -> Stack:
    """The whole, as `make deploy` would have it with these parameters."""
    return Stack("template", **{**DEPLOYED, **parameters})


WITH_PGBOUNCER = deployment()
WITH_PROXY = deployment(Connection="rds-proxy", PoolerImage="", PoolerTlsSecret="")
BOTH = pytest.mark.parametrize(
    "stack", [WITH_PGBOUNCER, WITH_PROXY], ids=["pgbouncer", "rds-proxy"]
)
INI = dict(re.findall(r"^(\w+) = (\w+)$", (ROOT / "pgbouncer/pgbouncer.ini").read_text(), re.M))


def only(found: dict[str, Any]) -> Any:
    assert len(found) == 1, list(found)
    return next(iter(found.values()))


def environment(stack: Stack) -> dict[str, str]:
    """The function's variables."""
    variables = stack.resources["Function/Function"]["Properties"]["Environment"]["Variables"]
    return {name: str(value) for name, value in variables.items()}
