"""The built image behind `sam local start-api`, AWS's own API Gateway on one machine."""

import contextlib
import json
import os
import re
import socket
import subprocess
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from infra.local import setup
from tests.conftest import eventually
from tests.infra.conftest import ON_COMPOSE, ComposeStack, docker

pytestmark = ON_COMPOSE

ROUTES = [
    ("Api", {"Path": "/{proxy+}", "Method": "ANY"}),
    ("HttpApi", {"Path": "/{proxy+}", "Method": "ANY", "PayloadFormatVersion": "2.0"}),
    ("HttpApi", {"Path": "/{proxy+}", "Method": "ANY", "PayloadFormatVersion": "1.0"}),
]
NAMES = ["a REST API", "an HTTP API with payload 2.0", "an HTTP API with payload 1.0"]


def template(compose: ComposeStack, kind: str, properties: dict[str, str]) -> dict[str, Any]:
    password = docker("exec", compose.container("handler"), "cat", "/run/secrets/app-password")
    environment = {
        "API_DOCS": "on",
        "DB_HOST": "pgbouncer",
        "DB_PORT": "6432",
        "DB_PASS": password.strip(),
        "DB_SSLMODE": "require",  # the CA's file is in a Compose volume
    }
    function = {
        "Type": "AWS::Serverless::Function",
        "Properties": {
            "PackageType": "Image",
            "ImageUri": f"warm-engine-handler:{compose.project}",
            "Timeout": 15,
            "MemorySize": 512,
            "Environment": {"Variables": environment},
            "Events": {"Any": {"Type": kind, "Properties": properties}},
        },
    }
    return {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Transform": "AWS::Serverless-2016-10-31",
        "Resources": {"Function": function},
    }


def containers(compose: ComposeStack) -> set[str]:
    return set(
        docker("ps", "--all", "--quiet", "--filter", f"network={compose.project}_default").split()
    )


def images() -> set[str]:
    return set(docker("image", "ls", "--format", "{{.Repository}}:{{.Tag}}").split())


@contextlib.contextmanager
def cleaned(compose: ComposeStack) -> Iterator[None]:
    """Remove what SAM leaves: a container in Compose's network, and an image."""
    before = containers(compose), images()
    try:
        yield
    finally:
        for each in containers(compose) - before[0]:
            docker("rm", "--force", each)
        for each in images() - before[1]:
            if each.startswith("warm-engine-handler:"):
                docker("image", "rm", "--force", each)


@pytest.fixture(scope="module", params=ROUTES, ids=NAMES)
def api(
    request: pytest.FixtureRequest, compose: ComposeStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("sam")
    setup.prepare("aws", setup.folder("aws"))
    (folder / "template.json").write_text(json.dumps(template(compose, *request.param)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        *(str(setup.folder("aws") / "bin/sam"), "local", "start-api"),
        *("--template", str(folder / "template.json"), "--port", str(port)),
        *("--docker-network", f"{compose.project}_default", "--warm-containers", "LAZY"),
        *("--skip-pull-image", "--no-watch"),
    ]
    env = {**os.environ, "HOME": str(folder), "SAM_CLI_TELEMETRY": "0"}
    env |= {"AWS_DEFAULT_REGION": "eu-central-1"}
    env |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    log = folder / "log"
    with (
        cleaned(compose),
        log.open("w") as output,
        subprocess.Popen(words, env=env, stdout=output, stderr=output, cwd=folder) as process,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client,
    ):
        try:
            eventually(lambda: process.poll() is not None or "Running on" in log.read_text(), 60)
            assert process.poll() is None
            yield client
        finally:
            process.terminate()
            print(log.read_text())


def test_the_readme_requests_work_behind_sam_local(api: httpx.Client) -> None:
    order = api.get("/orders/1")
    assert (order.status_code, order.json()["id"]) == (200, 1), order.text
    page = api.get("/orders", params={"status": "paid", "limit": 2}).json()
    assert [each["status"] for each in page["orders"]] == ["paid", "paid"]
    following = api.get(f"/orders{page['next']}").json()
    assert following["orders"][0]["id"] > page["orders"][-1]["id"]
    assert api.get("/health").json() == {"status": "ok"}
    assert api.get("/ready").json() == {"status": "ready"}


def test_an_order_is_created_once_behind_sam_local(api: httpx.Client) -> None:
    sent = {"customer_name": "Zoë & Söhne"}
    keyed = {"Idempotency-Key": str(uuid.uuid4())}
    placed = [api.post("/orders", json=sent, headers=keyed) for _ in range(2)]
    assert [each.status_code for each in placed] == [201, 201], placed[0].text
    assert placed[0].json() == placed[1].json()
    assert placed[1].headers["idempotency-replayed"] == "true"
    assert api.post("/orders", json={"customer_name": "B"}, headers=keyed).status_code == 409
    assert api.post("/orders", json=sent).status_code == 400


def test_problems_head_pages_and_redirects_work_behind_sam_local(api: httpx.Client) -> None:
    problem = api.get("/orders/01")
    assert (problem.status_code, problem.headers["content-type"]) == (
        422,
        "application/problem+json",
    )
    head = api.head("/orders/1")
    assert (head.status_code, head.content) == (200, b"")
    assert api.put("/orders").headers["allow"] == "GET, HEAD, POST"
    page = api.get("/docs")
    assert page.text.lstrip().startswith("<!DOCTYPE html>")
    [document] = re.findall(r"url: '([^']+)'", page.text)
    assert api.get(document).json()["info"]["title"] == "Warm Engine"
    slash = api.get("/orders/1/")
    assert slash.status_code == 307
    assert api.get(slash.headers["location"]).json()["id"] == 1
