"""The compose stack for tests: one for the session, under a project name of its own.

Owns bringing it up and taking it away, also what a run that was killed left: the project's name
holds the number and the birth of the process that it belongs to, and Compose labels with it all
it makes. Where no engine answers, the tests on it are skipped with the reason.
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
from testcontainers.compose import DockerCompose
from testcontainers.core.config import testcontainers_config

from infra.local import ROOT
from infra.local.fleet.front_door import api_gateway_event

testcontainers_config.ryuk_disabled = True  # we sweep ourselves; and its image is one more to pull
#: Whichever test comes first builds the images.
ON_COMPOSE = pytest.mark.timeout(600)
PREFIX = "warm-engine-test-"
LABEL = "com.docker.compose.project"
INVOCATIONS = "2015-03-31/functions/function/invocations"

#: Runs in a sandbox's container, so that no port has to be published and no proxy is measured:
#: the event on stdin is sent until time is up, and once at least. A line for each: when, status.
LOAD = f"""
import json, sys, time, urllib.request
event, end = sys.stdin.buffer.read(), time.time() + float(sys.argv[1])
request = urllib.request.Request("http://127.0.0.1:8080/{INVOCATIONS}", event)
while True:
    try:
        answer = json.load(urllib.request.urlopen(request, timeout=30))
    except OSError as error:  # the emulator does not listen yet
        if time.time() > end + 20: raise
        time.sleep(0.05)
        continue
    print(json.dumps([time.time(), answer.get("statusCode", 500), answer]), flush=True)
    if time.time() > end: break
"""


def docker(*words: str, stdin: str = "") -> str:
    """What the command said on stdout. Fails with what it said on stderr."""
    done = subprocess.run(["docker", *words], input=stdin, capture_output=True, text=True)
    assert done.returncode == 0, f"docker {' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


class Sandbox:
    """A container of the Lambda image."""

    def __init__(self, container: str) -> None:
        self.container = container

    def load(self, seconds: float, path: str = "/orders/1") -> list[tuple[float, int]]:
        """Requests one after another: when each was answered, and with which status."""
        return [(when, status) for when, status, _ in self._send(seconds, path)]

    def ask(self, path: str = "/orders/1") -> dict[str, Any]:
        """The function's answer to one request."""
        [[_, _, answer]] = self._send(0, path)
        return dict(answer)

    def _send(self, seconds: float, path: str) -> list[Any]:
        event = json.dumps(api_gateway_event("GET", path))
        said = docker(
            *("exec", "-i", self.container, "python3", "-c", LOAD, str(seconds)), stdin=event
        )
        return [json.loads(line) for line in said.splitlines()]

    def log(self) -> str:
        done = subprocess.run(["docker", "logs", self.container], capture_output=True, text=True)
        return done.stdout + done.stderr

    def address(self) -> str:
        return docker(
            *("inspect", "-f", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}"),
            self.container,
        ).strip()


class ComposeStack(DockerCompose):
    """docker-compose.yml under a name of its own. Called with words, it is `docker compose`."""

    def __init__(self, project: str, folder: Path) -> None:
        self.project = project
        self.seconds_to_start = 0.0
        settings = folder / f"{project}.env"
        settings.write_text(f"COMPOSE_PROJECT_NAME={project}\nTAG={project}\n")
        # Port 0, one that is free; not in the file, before which goes what a caller exported.
        os.environ["HANDLER_PORT"] = "0"
        super().__init__(ROOT, str(ROOT / "docker-compose.yml"), env_file=str(settings))

    def __call__(self, *words: str) -> str:
        return docker(*self.docker_compose_command()[1:], *words)

    def container(self, service: str) -> str:
        return self("ps", "--all", "--quiet", service).strip()

    @contextlib.contextmanager
    def sandbox(self, service: str = "fleet", *options: str) -> Iterator[Sandbox]:
        """One more container of `service`, for the time of the block."""
        container = self("run", "--detach", "--no-deps", *options, service).split()[-1]
        try:
            yield Sandbox(container)
        finally:
            docker("rm", "--force", "--volumes", container)

    def invoke(self, event: dict[str, Any]) -> dict[str, Any]:
        """Through the published port, as `make invoke` does."""
        host, port = self("port", "handler", "8080").strip().split(":")
        answer = httpx.post(f"http://{host}:{port}/{INVOCATIONS}", json=event, timeout=30)
        return dict(answer.json())

    def sql(self, query: str) -> list[dict[str, str]]:
        """Asked of Postgres itself, as its administrator and as `make psql` does."""
        words = ["exec", "-T", "postgres", "psql", "-U", "postgres", "--csv", "-c", query]
        return list(csv.DictReader(self(*words, "storefront").splitlines()))

    def console(self, command: str) -> str:
        """What PgBouncer's console answers, as CSV."""
        psql = (
            "PGPASSWORD=$(cat /run/secrets/console-password) "
            f"psql -h 127.0.0.1 -p 6432 -U console --csv -c '{command}' pgbouncer"
        )
        return self("exec", "-T", "pgbouncer", "sh", "-c", psql)

    def show(self, what: str) -> list[dict[str, str]]:
        return list(csv.DictReader(self.console(f"SHOW {what}").splitlines()))

    def clients_from(self, sandbox_address: str) -> list[dict[str, str]]:
        return [row for row in self.show("CLIENTS") if row["addr"] == sandbox_address]

    def backends_of(self, role: str) -> int:
        query = f"SELECT count(*) FROM pg_stat_activity WHERE usename = '{role}'"
        return int(self.sql(query)[0]["count"])

    def log(self, service: str) -> str:
        return self("logs", "--no-color", "--no-log-prefix", service)


def _why_not() -> str | None:
    """Why there is no compose stack here."""
    for words in (["info"], ["compose", "version"]):
        try:
            done = subprocess.run(["docker", *words], capture_output=True, text=True, timeout=20)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"no Docker here: {error}"
        if done.returncode:
            return f"no Docker engine with Compose answers: {done.stderr.strip()[:200]}"
    return None


def _name() -> str:
    return f"{PREFIX}{os.getpid()}-{round(psutil.Process().create_time() * 1000)}"


def _is_left_behind(project: str) -> bool:
    """Whether that project is a test run's whose process is no more."""
    if not project.startswith(PREFIX):
        return False
    pid, _, born = project.removeprefix(PREFIX).partition("-")
    try:
        return round(psutil.Process(int(pid)).create_time() * 1000) != int(born)
    except (psutil.NoSuchProcess, ValueError):
        return True


def sweep(*projects: str) -> None:
    """Take away what is left of `projects`, or of runs that were killed."""

    def gone(project: str) -> bool:
        return project in projects if projects else _is_left_behind(project)

    label = f'{{{{.Label "{LABEL}"}}}}'
    for kind, listing, removal in (
        ("container", ["ls", "--all"], ["rm", "--force", "--volumes"]),
        ("network", ["ls"], ["rm"]),
        ("volume", ["ls"], ["rm", "--force"]),
    ):
        name = "{{.Name}}" if kind != "container" else "{{.ID}}"
        for line in docker(kind, *listing, "--format", f"{name} {label}").splitlines():
            what, _, project = line.partition(" ")
            if gone(project):
                docker(kind, *removal, what)
    tags = docker("image", "ls", "--format", "{{.Tag}}", "warm-engine-*").split()
    for project in filter(gone, set(tags)):
        named = (
            "image",
            "ls",
            "--format",
            "{{.Repository}}:{{.Tag}}",
            f"warm-engine-*:{project}",
        )
        docker("image", "rm", *docker(*named).split())
        # Two services with one image: the first that was built has lost its name to the second.
        if nameless := docker("image", "ls", "--quiet", "--filter", f"label={LABEL}={project}"):
            docker("image", "rm", "--force", *set(nameless.split()))


@pytest.fixture(scope="session")
def engine() -> None:
    """A Docker engine with Compose, on which nothing of killed runs is left."""
    if reason := _why_not():
        pytest.skip(reason)
    sweep()


@pytest.fixture(scope="session")
def compose(engine: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ComposeStack]:
    """Shared by all: what a test adds, it takes away, and what it stops, it starts."""
    stack = ComposeStack(_name(), tmp_path_factory.mktemp("compose"))
    try:
        stack("build")
        begun = time.monotonic()
        try:
            stack.start()  # as `make up` does
        except subprocess.CalledProcessError as error:
            pytest.fail(f"{error.stderr.decode()[-2000:]}\n{stack('logs')[-8000:]}")
        stack.seconds_to_start = time.monotonic() - begun
        yield stack
        stack.stop()  # as `make down` does
    finally:
        sweep(stack.project)


@pytest.fixture
def sandbox(compose: ComposeStack) -> Iterator[Sandbox]:
    """A warm one, which goes through PgBouncer."""
    with compose.sandbox() as sandbox:
        assert sandbox.ask()["statusCode"] == 200
        yield sandbox
