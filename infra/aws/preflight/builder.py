"""Checks that Docker on this machine can build the images."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

from infra.aws.images import BUILDER_COMMAND, PLATFORMS
from infra.aws.parameters import Problem


def docker(architecture: str) -> Iterator[Problem]:
    """Yield a problem if Docker lacks buildx or cannot build for `architecture`."""
    needed = PLATFORMS.get(architecture)
    engine = _output("docker", "version", "--format", "{{.Server.Os}}/{{.Server.Arch}}").strip()
    if not engine:
        yield Problem(
            "Docker does not respond", "Install and start Docker, which builds the images"
        )
        return
    if not _output("docker", "buildx", "version"):
        yield Problem(
            "Docker has no buildx, which builds the images",
            "Install docker-buildx-plugin (Docker's packages) or docker-buildx (Debian, Ubuntu)",
        )
        return
    if not needed or engine == needed:
        return
    builder = _output(*BUILDER_COMMAND).strip()
    if needed not in _output("docker", "buildx", "inspect", builder):
        yield Problem(
            f"this Docker engine is {engine} and cannot build for Architecture={architecture}",
            "Run `docker run --privileged --rm tonistiigi/binfmt --install "
            f"{needed.removeprefix('linux/')}`, or build on a machine with that architecture",
        )


def _output(*command: str) -> str:
    """Return a program's output; empty if it fails, times out or is not installed."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
