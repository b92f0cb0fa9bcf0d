"""A Compose stack for the session, under its own project name.

The name contains the number and start time of the test process, and Compose labels everything with
it, so that a later run can remove what a killed run left. The tests are skipped where there is no
Docker.
"""

import contextlib
import csv
import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from pytest_httpserver import HTTPServer
from testcontainers.compose import DockerCompose
from testcontainers.core.config import testcontainers_config

from infra.local import ROOT
from infra.local.fleet.http_front_end import api_gateway_event
from tests.infra.aws_double import ANY, LambdaSettings

# Leftovers are removed here, and Ryuk's image would be one more to pull.
testcontainers_config.ryuk_disabled = True
#: The first test builds the images.
ON_COMPOSE = pytest.mark.timeout(600)
PREFIX = "warm-engine-test-"
LABEL = "com.docker.compose.project"
INVOCATIONS = "2015-03-31/functions/function/invocations"

#: Runs in a sandbox's container, so that no port is published and no proxy adds latency. Sends the
#: event on stdin until time is up, at least once, and prints time and status of each response.
LOAD = f"""
import json, sys, time, urllib.request
event, end = sys.stdin.buffer.read(), time.time() + float(sys.argv[1])
request = urllib.request.Request("http://127.0.0.1:8080/{INVOCATIONS}", event)
while True:
    try:
        response = json.load(urllib.request.urlopen(request, timeout=30))
    except OSError as error:  # the emulator does not listen yet
        if time.time() > end + 20: raise
        time.sleep(0.05)
        continue
    print(json.dumps([time.time(), response.get("statusCode", 500), response]), flush=True)
    if time.time() > end: break
"""


def docker(*words: str, stdin: str = "") -> str:
    """Run Docker and return its stdout; fail with its stderr."""
    result = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True)
    assert result.returncode == 0, f"docker {' '.join(words)}: {result.stderr or result.stdout}"
    return result.stdout


class Sandbox:
    """A container of the Lambda image."""

    def __init__(self, container: str) -> None:
        self.container = container

    def load(self, seconds: float, path: str = "/orders/1") -> list[tuple[float, int]]:
        """Send requests one after another; return time and status of each response."""
        return [(moment, status) for moment, status, _ in self._send(seconds, path)]

    def invoke(self, path: str = "/orders/1") -> dict[str, Any]:
        """Return the function's response to one request."""
        [[_, _, response]] = self._send(0, path)
        return dict(response)

    def _send(self, seconds: float, path: str) -> list[Any]:
        event = json.dumps(api_gateway_event("GET", path))
        output = docker(
            *("exec", "-i", self.container, "python3", "-c", LOAD, str(seconds)), stdin=event
        )
        return [json.loads(line) for line in output.splitlines()]

    def log(self) -> str:
        result = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True)
        return result.stdout + result.stderr

    def address(self) -> str:
        return docker(
            *("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"),
            self.container,
        ).strip()


class ComposeStack(DockerCompose):
    """docker-compose.yml under another project name. Calling it runs `docker compose`."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        self.seconds_to_start = 0.0
        settings = folder / f"{project}.env"
        settings.write_text(f"COMPOSE_PROJECT_NAME={project}\nTAG={project}\n")
        # Any free port; in the environment, which takes precedence over the file.
        os.environ["HANDLER_PORT"] = "0"
        super().__init__(ROOT, str(ROOT / "docker-compose.yml"), env_file=str(settings))

    def stop(self, down: bool = True) -> None:
        try:
            super().stop(down)
        except subprocess.CalledProcessError as error:
            if b"has active endpoints" not in error.stderr:
                raise
            listing = ("network", "ls", "--filter", f"label={LABEL}={self.project}")
            for network in docker(*listing, "--format", "{{.Name}}").split():
                remove_network(network)

    def __call__(self, *words: str) -> str:
        return docker(*self.docker_compose_command()[1:], *words)

    def container(self, service: str) -> str:
        return self("ps", "--all", "--quiet", service).strip()

    @contextlib.contextmanager
    def sandbox(self, service: str = "fleet", *options: str) -> Iterator[Sandbox]:
        """Start one more container of `service` for the duration of the block."""
        container = self("run", "--detach", "--no-deps", *options, service).split()[-1]
        try:
            yield Sandbox(container)
        finally:
            docker("rm", "--force", "--volumes", container)

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Send an event through the published port, as `make invoke` does."""
        host, port = self("port", "handler", "8080").strip().split(":")
        response = httpx.post(f"http://{host}:{port}/{INVOCATIONS}", json=event, timeout=30)
        return dict(response.json())

    def sql(self, query: str) -> list[dict[str, str]]:
        """Query Postgres directly as the administrator, as `make psql` does."""
        words = ["exec", "-T", "postgres", "psql", "-U", "postgres", "--csv", "-c", query]
        return list(csv.DictReader(self(*words, "storefront").splitlines()))

    def console(self, command: str) -> str:
        """Run a command on PgBouncer's console and return its result as CSV."""
        psql = (
            "PGPASSWORD=$(cat /run/secrets/console-password) "
            f"psql -h 127.0.0.1 -p 6432 -U console --csv -c '{command}' pgbouncer"
        )
        return self("exec", "-T", "pgbouncer", "sh", "-c", psql)

    def show(self, table: str) -> list[dict[str, str]]:
        return list(csv.DictReader(self.console(f"SHOW {table}").splitlines()))

    def clients_from(self, sandbox_address: str) -> list[dict[str, str]]:
        return [row for row in self.show("CLIENTS") if row["addr"] == sandbox_address]

    def backends_of(self, role: str) -> int:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'"
        return int(self.sql(query)[0]["count"])

    def exit_statuses(self, service: str, since: float, until: float) -> list[int]:
        """Return the exit statuses of the service's processes that ended in this period."""
        period = ("--since", str(since), "--until", str(until))
        only = ("--filter", f"container={self.container(service)}", "--filter", "event=die")
        status = '{{index .Actor.Attributes "exitCode"}}'
        return [int(line) for line in docker("events", *period, *only, "--format", status).split()]

    def log(self, service: str) -> str:
        return self("logs", "--no-color", "--no-log-prefix", service)


def _docker_unavailable_reason() -> str | None:
    """Return why Compose is unavailable, or None."""
    for words in (["info"], ["compose", "version"]):
        try:
            result = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no Docker here: {error}"
        if result.returncode:
            return f"no Docker engine with Compose answers: {result.stderr.strip()[:200]}"
    return None


def _name() -> str:
    return f"{PREFIX}{os.getpid()}-{round(psutil.Process().create_time() * 1000)}"


def _is_abandoned(project: str) -> bool:
    """Return whether the project belongs to a test run whose process has ended."""
    if not project.startswith(PREFIX):
        return False
    pid, _, created = project.removeprefix(PREFIX).partition("-")
    try:
        return round(psutil.Process(int(pid)).create_time() * 1000) != int(created)
    except (psutil.NoSuchProcess, ValueError):
        return True


def remove_network(name: str) -> None:
    """Remove a network; fail if a container uses it.

    Docker sometimes counts the endpoint of a removed container until Docker is restarted
    (moby#42119). Such a network remains.
    """
    result = subprocess.run(["docker", "network", "rm", name], capture_output=True, text=True)
    if result.returncode:
        assert "has active endpoints" in result.stderr, result.stderr
        containers = docker("network", "inspect", "--format", "{{json .Containers}}", name)
        assert containers.strip() == "{}", containers


def remove_leftovers(*projects: str) -> None:
    """Remove the containers, networks, volumes and images of `projects`, or of killed runs."""

    def is_removable(project: str) -> bool:
        return project in projects if projects else _is_abandoned(project)

    label = f'{{{{.Label "{LABEL}"}}}}'
    for object_type, listing, removal in (
        ("container", ["ls", "--all"], ["rm", "--force", "--volumes"]),
        ("network", ["ls"], []),
        ("volume", ["ls"], ["rm", "--force"]),
    ):
        name = "{{.Name}}" if object_type != "container" else "{{.ID}}"
        for line in docker(object_type, *listing, "--format", f"{name} {label}").splitlines():
            identifier, _, project = line.partition(" ")
            if not is_removable(project):
                continue
            if object_type == "network":
                remove_network(identifier)
            else:
                docker(object_type, *removal, identifier)
    tags = docker("image", "ls", "--format", "{{.Tag}}", "warm-engine-*").split()
    for project in filter(is_removable, set(tags)):
        listing_of_project = (
            "image",
            "ls",
            "--format",
            "{{.Repository}}:{{.Tag}}",
            f"warm-engine-*:{project}",
        )
        docker("image", "rm", *docker(*listing_of_project).split())
        # When two services share an image, the first one built loses its tag to the second.
        if untagged := docker("image", "ls", "--quiet", "--filter", f"label={LABEL}={project}"):
            docker("image", "rm", "--force", *set(untagged.split()))


@pytest.fixture(scope="session")
def engine() -> None:
    """Require a Docker engine with Compose, and remove what killed runs left in it."""
    if reason := _docker_unavailable_reason():
        pytest.skip(reason)
    remove_leftovers()


@pytest.fixture(scope="session")
def compose(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """Share one stack among all tests. A test removes what it adds and starts what it stops."""
    stack = ComposeStack(_name(), tmp_path_factory.mktemp("compose"))
    try:
        stack("build")
        started = time.monotonic()
        try:
            stack.start()  # as `make up` does
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{error.stderr.decode()[-2000:]}\n{stack('logs')[-8000:]}")
        stack.seconds_to_start = time.monotonic() - started
        yield stack
        stack.stop()  # as `make down` does
    finally:
        remove_leftovers(stack.project)


@pytest.fixture
def sandbox(compose: ComposeStack) -> Iterator[Sandbox]:
    """Start a warm sandbox that connects through PgBouncer."""
    with compose.sandbox() as sandbox:
        assert sandbox.invoke()["statusCode"] == 200
        yield sandbox


@pytest.fixture
def lambda_settings(
    aws: str, httpserver: HTTPServer, monkeypatch: pytest.MonkeyPatch
) -> LambdaSettings:
    settings = LambdaSettings()
    httpserver.expect_request(ANY).respond_with_handler(settings.answer)
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", httpserver.url_for(""))
    return settings
