"""The image works behind `sam local start-api`, which simulates API Gateway."""

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
def removing_leftovers(compose: ComposeStack) -> Iterator[None]:
    """Remove the container and the image that SAM creates and does not remove."""
    containers_before, images_before = containers(compose), images()
    try:
        yield
    finally:
        for container in containers(compose) - containers_before:
            docker("rm", "--force", container)
        for image in images() - images_before:
            if image.startswith("warm-engine-handler:"):
                docker("image", "rm", "--force", image)


@pytest.fixture(scope="module", params=ROUTES, ids=NAMES)
def api(
    request: pytest.FixtureRequest, compose: ComposeStack, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("sam")
    setup.prepare("aws", setup.folder("aws"))
    (folder / "template.json").write_text(json.dumps(template(compose, *request.param)))
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [
        *(str(setup.folder("aws") / "bin/sam"), "local", "start-api"),
        *("--template", str(folder / "template.json"), "--port", str(port)),
        *("--docker-network", f"{compose.project}_default", "--warm-containers", "LAZY"),
        *("--skip-pull-image", "--no-watch"),
    ]
    environment = {**os.environ, "HOME": str(folder), "SAM_CLI_TELEMETRY": "0"}
    environment |= {"AWS_DEFAULT_REGION": "eu-central-1"}
    environment |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
    log = folder / "log"
    with (
        removing_leftovers(compose),
        log.open("w") as output,
        subprocess.Popen(
            command, env=environment, stdout=output, stderr=output, cwd=folder
        ) as process,
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
    response = api.get("/orders/1")
    assert (response.status_code, response.json()["id"]) == (200, 1), response.text
    page = api.get("/orders", params={"status": "paid", "limit": 2}).json()
    assert [order["status"] for order in page["orders"]] == ["paid", "paid"]
    next_page = api.get(f"/orders{page['next']}").json()
    assert next_page["orders"][0]["id"] > page["orders"][-1]["id"]
    assert api.get("/health").json() == {"status": "ok"}
    assert api.get("/ready").json() == {"status": "ready"}


def test_an_order_is_created_once_behind_sam_local(api: httpx.Client) -> None:
    order = {"customer_name": "Zoë & Söhne"}
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    first, second = (api.post("/orders", json=order, headers=headers) for _ in range(2))
    assert [first.status_code, second.status_code] == [201, 201], first.text
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert api.post("/orders", json={"customer_name": "B"}, headers=headers).status_code == 409
    assert api.post("/orders", json=order).status_code == 400


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
    [openapi_path] = re.findall(r"url: '([^']+)'", page.text)
    assert api.get(openapi_path).json()["info"]["title"] == "Warm Engine"
    redirect = api.get("/orders/1/")
    assert redirect.status_code == 307
    assert api.get(redirect.headers["location"]).json()["id"] == 1
