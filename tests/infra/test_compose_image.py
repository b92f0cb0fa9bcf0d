"""The Lambda image by itself: what is in it, and that it runs where Lambda runs it."""

import json

from testcontainers.core.container import DockerContainer

from infra.local import ROOT
from tests.infra.conftest import LABEL, ON_COMPOSE, ComposeStack, Sandbox, docker

pytestmark = ON_COMPOSE

BASE = "public.ecr.aws/lambda/python:3.13"
LIMIT = 120_000_000
MODULES = {path.name for path in (ROOT / "handler").glob("*.py")}

#: Prints each module without bytecode that is of its present text and is read without asking for
#: the text's time, and how many there are.
CHECK = """
import importlib.util, pathlib
sources = [path for path in pathlib.Path("/var/task").rglob("*.py")]
for path in sources:
    cached = pathlib.Path(importlib.util.cache_from_source(path))
    head = cached.read_bytes()[:16] if cached.exists() else b""
    wanted = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little")
    if head != wanted + importlib.util.source_hash(path.read_bytes()):
        print("stale", path)
print(len(sources))
"""


def image_of(compose: ComposeStack) -> str:
    return f"warm-engine-handler:{compose.project}"


async def test_every_module_has_its_bytecode(compose: ComposeStack) -> None:
    said = docker("run", "--rm", "--entrypoint", "python3", image_of(compose), "-c", CHECK)
    assert said.count("\n") == 1, said
    assert int(said) > 500


async def test_it_answers_read_only_and_as_lambda_s_user(compose: ComposeStack) -> None:
    container = (
        DockerContainer(image_of(compose))
        .with_tmpfs_mount("/tmp")
        .with_kwargs(read_only=True, user="993", labels={LABEL: compose.project})
    )
    with container as running:
        answer = Sandbox(running.get_container_id()).ask("/health")
        assert answer["body"] == '{"status":"ok"}'


async def test_it_holds_the_handler_and_its_packages_alone(compose: ComposeStack) -> None:
    image = image_of(compose)
    words = ("run", "--rm", "--entrypoint", "ls", image)
    listed = docker(*words, "/var/task").split()
    assert "handler" in listed
    assert not {"infra", "tests", "bin", "alembic", "pytest", "awslambdaric"} & set(listed)
    assert set(docker(*words, "/var/task/handler").split()) == MODULES | {"__pycache__"}


async def test_it_adds_less_than_120_mb_to_its_base(compose: ComposeStack) -> None:
    sizes = [int(docker("inspect", "-f", "{{.Size}}", name)) for name in (image_of(compose), BASE)]
    assert 10_000_000 < sizes[0] - sizes[1] < LIMIT


async def test_its_layers_are_the_same_for_every_build(compose: ComposeStack) -> None:
    again = f"warm-engine-again:{compose.project}"
    docker(
        *("build", "--quiet", "--no-cache", "-f", str(ROOT / "handler/Dockerfile")),
        *("-t", again, str(ROOT)),
    )
    layers = [
        json.loads(docker("inspect", "-f", "{{json .RootFS.Layers}}", name))
        for name in (image_of(compose), again)
    ]
    assert layers[0] == layers[1]


async def test_it_says_what_it_is(compose: ComposeStack) -> None:
    said = docker("inspect", "-f", "{{json .Config}}", image_of(compose))
    config = json.loads(said)
    assert config["Labels"]["org.opencontainers.image.licenses"] == "MIT"
    assert config["Entrypoint"] == ["/lambda-entrypoint.sh"]
    assert config["Cmd"] == ["handler.main.handler"]


async def test_every_pinned_hash_is_there_for_arm64(compose: ComposeStack) -> None:
    """The image itself is built and run for x86-64 only."""
    docker(
        *("run", "--rm", "-v", f"{ROOT / 'handler'}:/handler:ro", "--entrypoint", "pip", BASE),
        *("download", "--quiet", "--no-cache-dir", "--only-binary=:all:", "--require-hashes"),
        *("--platform", "manylinux2014_aarch64", "--platform", "manylinux_2_28_aarch64"),
        *("--python-version", "3.13", "-d", "/tmp/wheels", "-r", "/handler/requirements.txt"),
    )
