"""Reads a CloudFormation template as plain data: `!Ref X` becomes `{"Ref": "X"}`."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent


class _Loader(yaml.SafeLoader):
    """A YAML loader that knows CloudFormation's tags."""


def _intrinsic(loader: _Loader, tag: str, node: yaml.Node) -> dict[str, Any]:
    value: Any
    if isinstance(node, yaml.ScalarNode):
        value = loader.construct_scalar(node)
        if tag == "GetAtt":
            value = value.split(".", 1)
    elif isinstance(node, yaml.SequenceNode):
        value = loader.construct_sequence(node, deep=True)
    elif isinstance(node, yaml.MappingNode):
        value = loader.construct_mapping(node, deep=True)
    return {tag if tag in ("Ref", "Condition") else f"Fn::{tag}": value}


_Loader.add_multi_constructor("!", _intrinsic)


@cache
def read(name: str) -> dict[str, Any]:
    """Return the template `infra/aws/<name>.yaml`. It is cached, so do not modify it."""
    text = (FOLDER / f"{name}.yaml").read_text()
    template: dict[str, Any] = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader with tags
    return template
