"""The Lambda image contains what it needs and runs under Lambda's restrictions."""

import json
import os
from pathlib import Path

import pytest
from testcontainers.core.container import DockerContainer

from infra.local import ROOT, LabError, network
from infra.local.examine.command import measure
from infra.local.examine.finding import Verdict
from infra.local.examine.image import unpacked
from infra.local.examine.inputs import Inputs
from tests.infra.conftest import LABEL, ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE

BASE = "public.ecr.aws/lambda/python:3.14"
MAX_ADDED_BYTES = 120_000_000
MODULES = {path.name for path in (ROOT / "handler").glob("*.py")} | {"warm"}

#: Prints each module without current unchecked bytecode, and how many modules there are.
CHECK = """
import importlib.util, pathlib
sources = [path for path in pathlib.Path("/var/task").rglob("*.py")]
for path in sources:
    cached = pathlib.Path(importlib.util.cache_from_source(path))
    head = cached.read_bytes()[:16] if cached.exists() else b""
    expected = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
    if head != expected + importlib.util.source_hash(path.read_bytes()):
        print("stale", path)
print(len(sources))
"""


def image_of(compose: ComposeStack) -> str:
    return f"warm-engine-handler:{compose.project}"


async def test_every_module_is_precompiled(compose: ComposeStack) -> None:
    output = docker("run", "--rm", "--entrypoint", "python3", image_of(compose), "-c", CHECK)
    assert output.count("\n") == 1, output
    assert int(output) > 500


async def test_the_image_runs_on_a_read_only_file_system_as_an_unprivileged_user(
    compose: ComposeStack,
) -> None:
    container = (
        DockerContainer(image_of(compose))
        .with_tmpfs_mount("/tmp")
        .with_env("DB_HOST", "db.internal")  # on Lambda there is no default
        .with_env("DB_PASS", "unused")
        .with_env("DB_SSLMODE", "require")
        .with_kwargs(read_only=True, user="993", labels={LABEL: compose.project})
    )
    with container as running:
        assert Sandbox(running.get_container_id()).invoke("/health")["body"] == '{"status":"ok"}'


async def test_the_image_contains_only_the_handler_and_its_packages(compose: ComposeStack) -> None:
    words = ("run", "--rm", "--entrypoint", "ls", image_of(compose))
    files = docker(*words, "/var/task").split()
    assert "handler" in files
    assert not {"infra", "tests", "bin", "alembic", "pytest", "awslambdaric"} & set(files)
    assert set(docker(*words, "/var/task/handler").split()) == MODULES | {"__pycache__"}


async def test_the_image_adds_less_than_120_mb_to_its_base(compose: ComposeStack) -> None:
    sizes = [int(docker("inspect", "-f", "{{.Size}}", name)) for name in (image_of(compose), BASE)]
    assert 10_000_000 < sizes[0] - sizes[1] < MAX_ADDED_BYTES


async def test_the_image_layers_are_reproducible(compose: ComposeStack) -> None:
    second_build = f"warm-engine-again:{compose.project}"
    docker(
        *("build", "--quiet", "--no-cache", "-f", str(ROOT / "handler/Dockerfile")),
        *("-t", second_build, str(ROOT)),
    )
    layers = [
        json.loads(docker("inspect", "-f", "{{json .RootFS.Layers}}", name))
        for name in (image_of(compose), second_build)
    ]
    assert layers[0] == layers[1]


async def test_a_build_argument_selects_another_lambda_python(compose: ComposeStack) -> None:
    other_image = f"warm-engine-other:{compose.project}"
    docker(
        *("build", "--quiet", "--build-arg", "PYTHON=3.13", "-t", other_image),
        *("-f", str(ROOT / "handler/Dockerfile"), str(ROOT)),
    )
    words = ("run", "--rm", "--entrypoint", "python3")
    assert docker(*words, image_of(compose), "--version").startswith("Python 3.14.")
    assert docker(*words, other_image, "--version").startswith("Python 3.13.")
    output = docker(*words, other_image, "-c", CHECK)
    assert output.count("\n") == 1, output
    docker(*words, "--env", "DB_SSLMODE=require", other_image, "-c", "import handler.main")


async def test_the_image_has_labels_an_entry_point_and_a_command(compose: ComposeStack) -> None:
    config = json.loads(docker("inspect", "-f", "{{json .Config}}", image_of(compose)))
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert config["Entrypoint"] == ["/lambda-entrypoint.sh"]
    assert config["Cmd"] == ["handler.main.handler"]


async def test_every_package_has_a_pinned_hash_for_arm64(compose: ComposeStack) -> None:
    """The image itself is built and run for x86-64 only."""
    docker(
        *("run", "--rm", "-v", f"{ROOT / 'handler'}:/handler:ro", "--entrypoint", "pip", BASE),
        *("download", "--quiet", "--no-cache-dir", "--only-binary=:all:", "--require-hashes"),
        *("--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_28_aarch64"),
        *("--python-version", "3.14", "-d", "/tmp/wheels", "-r", "/handler/requirements.txt"),
    )


CHANGES_ROOT = pytest.mark.skipif(
    os.getuid() != 0 and not network.is_isolated(), reason="only root may change the root directory"
)


@CHANGES_ROOT
def test_make_examine_measures_the_function_in_an_image(compose: ComposeStack) -> None:
    wanted = ("start", "events", "pooling", "shutdown", "deployment")
    with unpacked(image_of(compose), Inputs(wanted=wanted, fast=True)) as inputs:
        findings, _ = measure(inputs, "not needed")
        unpacked_to = inputs.root
    assert {name: finding.verdict for name, finding in findings.items()} == dict.fromkeys(
        wanted, Verdict.YES
    ), findings
    assert not unpacked_to.exists()
    with Path("/proc/self/mountinfo").open() as mounts:
        assert "warm-engine-image-" not in mounts.read()


@CHANGES_ROOT
def test_an_image_that_does_not_exist_is_named(compose: ComposeStack) -> None:
    with (
        pytest.raises(LabError, match=r"No such image: no-such-image"),
        unpacked("no-such-image", Inputs()),
    ):
        pytest.fail("it was unpacked")
