"""Imitates the parts of AWS that moto lacks, and the programs that the scripts start."""

import contextlib
import copy
import json
import re
import stat
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import ClientError
from werkzeug import Request, Response

from infra.aws import template_file

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
REGION = "eu-central-1"
#: Matches any request to `httpserver`.
ANY = re.compile("")


class LambdaSettings:
    """A double of Lambda's GetAccountSettings, with the quota and its unreserved part."""

    def __init__(self, quota: int = 1000, unreserved: int | None = None) -> None:
        self.limits = {
            "ConcurrentExecutions": quota,
            "UnreservedConcurrentExecutions": quota if unreserved is None else unreserved,
        }
        self.denied = False

    def answer(self, _: Request) -> Response:
        if self.denied:
            message = {"Message": "not authorized to perform: lambda:GetAccountSettings"}
            return Response(json.dumps(message), 403, {"x-amzn-ErrorType": "AccessDeniedException"})
        return Response(json.dumps({"AccountLimit": self.limits}))


def program(folder: Path, name: str, script: str) -> None:
    """Create an executable shell script in `folder`, which a test adds to the PATH."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


#: Docker for x86-64 without buildx, with buildx, and with a builder for both architectures.
DOCKER_WITHOUT_BUILDX = 'case "$1" in version) echo linux/amd64;; context) echo mine;; esac'
DOCKER = f'[ "$1 $2" = "buildx version" ] && echo v0.20.0; {DOCKER_WITHOUT_BUILDX}'
DOCKER_FOR_BOTH = f'[ "$*" = "buildx inspect mine" ] && echo linux/amd64, linux/arm64; {DOCKER}'


def client(service: str) -> Any:
    return boto3.client(service, region_name=REGION)  # type: ignore[call-overload]  # any service


#: A template of another application, with one resource.
NOTHING = {"Resources": {"Nothing": {"Type": "AWS::SNS::Topic"}}}


def create_stack(name: str, body: dict[str, Any], **values: str) -> None:
    """Create or update a stack from a template that declares only `values`."""
    cloudformation = client("cloudformation")
    arguments: dict[str, Any] = {
        "StackName": name,
        "TemplateBody": json.dumps(body),
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value} for key, value in values.items()
        ],
    }
    known = {stack["StackName"] for stack in cloudformation.describe_stacks()["Stacks"]}
    with contextlib.suppress(ClientError):  # "No updates are to be performed"
        (cloudformation.update_stack if name in known else cloudformation.create_stack)(**arguments)


def create_registry(name: str, **values: str) -> None:
    body = copy.deepcopy(template_file.read("registry"))
    declared = body["Parameters"]
    create_stack(name, body, **{key: values[key] for key in values if key in declared})


def create_application(name: str, **values: str) -> None:
    """Create a stack with these parameters and, of template.yaml's resources, two secrets."""
    secrets = client("secretsmanager")
    outputs = {"Url": {"Value": "https://example"}, "Callers": {"Value": "signed ones"}}
    for secret in ("OwnerSecret", "LookupSecret"):
        outputs[secret] = {"Value": f"{name}-{secret}"}
        with contextlib.suppress(secrets.exceptions.ResourceExistsException):
            secrets.create_secret(Name=f"{name}-{secret}", SecretString="0")
    body = {
        "Parameters": {key: {"Type": "String"} for key in values},
        **NOTHING,
        "Outputs": outputs,
    }
    create_stack(name, body, **values)


def push_image(repository: str, tag: str) -> None:
    manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": {"digest": tag}}
    client("ecr").put_image(
        repositoryName=repository, imageManifest=json.dumps(manifest), imageTag=tag
    )
