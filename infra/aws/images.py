"""Builds the three images with Docker and pushes them with a tag derived from their content."""

from __future__ import annotations

import base64
from typing import Any

import boto3

from infra.aws import programs, trust

#: Image → the arguments of `docker buildx build` for it.
IMAGES = {
    "function": ["--file", "handler/Dockerfile", "."],
    "migrate": ["--file", "infra/database/Dockerfile", "."],
    "pooler": ["pgbouncer"],
}
#: Lambda's architecture → Docker's platform.
PLATFORMS = {"x86_64": "linux/amd64", "arm64": "linux/arm64"}
#: Prints the name of Docker's context, which is also the name of its own builder.
BUILDER_COMMAND = ("docker", "context", "inspect", "--format", "{{.Name}}")


def push(session: boto3.Session, name: str, repository: str, architecture: str, stack: str) -> str:
    """Build an image, push it if the repository lacks it, and return its name with the digest."""
    # With an attestation the image would be a manifest list, which Lambda does not accept.
    build = ["docker", "buildx", "build", "--quiet", "--provenance=false", "--load"]
    # Any other builder than Docker's own would look for the base image in a registry.
    builder = programs.run(*BUILDER_COMMAND, quiet=True).strip()
    build += ["--builder", builder, "--platform", PLATFORMS[architecture]]
    print(f"image {name} …", flush=True)
    # The tag is unique, because two deployments from one checkout may run at the same time.
    local = f"warm-engine/{name}:{stack}-{session.region_name}"
    programs.run(*build, "--tag", local, *IMAGES[name])
    output = programs.run(
        *(*build, "--target", name),
        *("--build-arg", f"{name.upper()}={local}"),
        *("--build-arg", f"TRUST={trust.folder(session, stack)}"),
        "infra/aws",
        quiet=True,
    )
    image_id = output.strip()
    tag = image_id.removeprefix("sha256:")[:32]
    ecr = session.client("ecr")
    host, _, path = repository.partition("/")
    image: Any = {"repositoryName": path, "imageIds": [{"imageTag": tag}]}
    try:
        ecr.describe_images(**image)
    except ecr.exceptions.ImageNotFoundException:
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        login = ("docker", "login", "--username", user, "--password-stdin", host)
        programs.run(*login, stdin=password)
        programs.run("docker", "tag", image_id, f"{repository}:{tag}")
        programs.run("docker", "push", "--quiet", f"{repository}:{tag}")
    digest = ecr.describe_images(**image)["imageDetails"][0]["imageDigest"]
    return f"{repository}@{digest}"
