"""Builds the three images with Docker and pushes them with a tag derived from their content."""

from __future__ import annotations

import base64
from typing import Any

import boto3

from infra.aws import programs, trust

#: Image → arguments of its build.
IMAGES = {
    "function": ["--file", "handler/Dockerfile", "."],
    "migrate": ["--file", "infra/database/Dockerfile", "."],
    "pooler": ["pgbouncer"],
}
#: Lambda's architecture → Docker's platform.
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}
#: Prints the name of Docker's context, which is also the name of its own builder.
BUILDER = ("docker", "context", "inspect", "--format", "{{.Name}}")


def push(session: boto3.Session, name: str, repository: str, architecture: str, stack: str) -> str:
    """Build an image, push it if it is missing, and return its name with digest."""
    # Without an attestation, which would make a manifest list: Lambda does not accept one.
    build = ["docker", "buildx", "build", "--quiet", "--provenance=false", "--load"]
    # Docker's own builder: any other would look for the base image in a registry.
    builder = programs.run(*BUILDER, quiet=True).strip()
    build += ["--builder", builder, "--platform", PLATFORMS[architecture]]
    print(f"image {name} …", flush=True)
    # Two deployments from one checkout may run at the same time.
    local = f"warm-engine/{name}:{stack}-{session.region_name}"
    programs.run(*build, "--tag", local, *IMAGES[name])
    arguments = [f"{name.upper()}={local}", f"TRUST={trust.folder(session, stack)}"]
    given = [word for each in arguments for word in ("--build-arg", each)]
    output = programs.run(*build, "--target", name, *given, "infra/aws", quiet=True)
    identity = output.strip()
    tag = identity.removeprefix("sha256:")[:32]
    ecr = session.client("ecr")
    host, _, path = repository.partition("/")
    wanted: Any = {"repositoryName": path, "imageIds": [{"imageTag": tag}]}
    try:
        ecr.describe_images(**wanted)
    except ecr.exceptions.ImageNotFoundException:
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        login = ("docker", "login", "--username", user, "--password-stdin", host)
        programs.run(*login, stdin=password)
        programs.run("docker", "tag", identity, f"{repository}:{tag}")
        programs.run("docker", "push", "--quiet", f"{repository}:{tag}")
    digest = ecr.describe_images(**wanted)["imageDetails"][0]["imageDigest"]
    return f"{repository}@{digest}"
