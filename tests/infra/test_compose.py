"""The stack of docker-compose.yml starts, uses TLS, keeps its secrets and confines its services."""

import json

from infra.local import ROOT
from tests.conftest import eventually
from tests.infra.conftest import LABEL, ON_COMPOSE, PREFIX, ComposeStack, docker, remove_leftovers

pytestmark = ON_COMPOSE

EVENT = json.loads((ROOT / "infra/local/event.json").read_text())


async def test_the_stack_serves_an_order_within_a_minute(compose: ComposeStack) -> None:
    response = compose.invoke(EVENT)
    assert response["statusCode"] == 200
    assert json.loads(response["body"])["id"] == 1
    assert compose.seconds_to_start < 60


async def test_both_hops_use_tls_1_3(compose: ComposeStack) -> None:
    compose.invoke(EVENT)
    [client] = [row for row in compose.show("CLIENTS") if row["user"] == "appuser"]
    assert client["tls"].startswith("TLSv1.3/")
    servers = compose.show("SERVERS")
    assert {row["user"] for row in servers} == {"appuser", "pooler_lookup"}
    assert all(row["tls"].startswith("TLSv1.3/") for row in servers)
    connections = compose.sql(
        "SELECT usename, ssl, version FROM pg_stat_ssl JOIN pg_stat_activity USING (pid)"
        " WHERE client_addr IS NOT NULL"
    )
    assert {row["usename"] for row in connections} >= {"appuser", "pooler_lookup"}
    assert {(row["ssl"], row["version"]) for row in connections} == {("t", "TLSv1.3")}


async def test_postgres_rejects_connections_without_tls(compose: ComposeStack) -> None:
    psql = (
        "PGPASSWORD=$(cat /run/secrets/lookup-password)"
        " psql 'host=postgres user=pooler_lookup dbname=storefront sslmode=disable' 2>&1 || true"
    )
    assert "no encryption" in compose("exec", "-T", "pgbouncer", "sh", "-c", psql)


async def test_a_second_start_keeps_data_and_warm_sandboxes(compose: ComposeStack) -> None:
    compose.invoke(EVENT)
    read_ca = ("run", "--rm", "--no-deps", "--entrypoint", "cat", "migrate", "/run/secrets/ca.pem")
    ca_before = compose(*read_ca)
    compose("up", "--wait")
    assert compose(*read_ca) == ca_before
    compose.console("RECONNECT")  # as after a minute without a request
    eventually(lambda: not [row for row in compose.show("SERVERS") if row["user"] == "appuser"])
    assert compose.invoke(EVENT)["statusCode"] == 200
    assert compose.sql("SELECT count(*) FROM orders") == [{"count": "1000"}]


async def test_no_secret_is_in_an_environment_image_history_or_log(compose: ComposeStack) -> None:
    compose.invoke(EVENT)
    show = ("--entrypoint", "sh", "migrate", "-c", "tail -n +1 /run/secrets/*-password")
    lines = compose("run", "--rm", "--no-deps", *show).splitlines()
    secrets = [line for line in lines if line and not line.startswith("==>")]
    assert len(secrets) == 5
    assert min(map(len, secrets)) > 20
    containers = compose("ps", "--all", "--quiet").split()
    images = {docker("inspect", "-f", "{{.Image}}", container) for container in containers}
    sources = {
        "inspect": docker("inspect", *containers),
        "history": "".join(docker("history", "--no-trunc", image.strip()) for image in images),
        "logs": compose("logs"),
    }
    assert "DB_HOST" in sources["inspect"]
    assert "handler.main.handler" in sources["history"]
    assert "login attempt" in sources["logs"]
    for source, text in sources.items():
        assert not [secret for secret in secrets if secret in text], source


async def test_each_container_sees_only_its_own_secrets(compose: ComposeStack) -> None:
    for service, files in {
        "handler": {"app-password", "ca.pem"},
        "pgbouncer": {"lookup-password", "console-password", "ca.pem", "server.pem", "server.key"},
        "postgres": {"admin-password", "ca.pem", "server.pem", "server.key", "pg_hba.conf"},
    }.items():
        listing = compose("exec", "-T", service, "sh", "-c", "cd /run/secrets; stat -c '%n %a' *")
        assert dict(line.split() for line in listing.splitlines()) == dict.fromkeys(files, "400")


async def test_every_service_is_confined(compose: ComposeStack) -> None:
    config = json.loads(compose("--profile", "*", "config", "--format", "json"))
    for name, service in config["services"].items():
        assert "container_name" not in service
        assert not service["image"].endswith(":latest")
        assert service["mem_limit"], name
        for port in service.get("ports", []):
            assert port["host_ip"] == "127.0.0.1"
        if name != "churn":
            assert service["read_only"], name
            assert service["cap_drop"] == ["ALL"], name
    for service in ("handler", "pgbouncer", "postgres"):
        status = compose("exec", "-T", service, "cat", "/proc/1/status")
        uids = next(line for line in status.splitlines() if line.startswith("Uid:"))
        assert "0" not in uids.split(), service
        assert "CapEff:\t0000000000000000" in status, service


async def test_only_leftovers_of_a_killed_run_are_removed(compose: ComposeStack) -> None:
    # A run that has ended: process 1 never had this start time.
    abandoned_project = f"{PREFIX}1-1"
    for project in (abandoned_project, compose.project):
        docker("volume", "create", "--label", f"{LABEL}={project}", f"{project}_left")
    docker(
        "tag", f"warm-engine-handler:{compose.project}", f"warm-engine-handler:{abandoned_project}"
    )
    remove_leftovers()
    volumes = docker("volume", "ls", "--format", "{{.Name}}").split()
    assert f"{abandoned_project}_left" not in volumes
    assert f"{compose.project}_left" in volumes
    assert f"{compose.project}_data" in volumes
    assert not docker("image", "ls", "--quiet", f"warm-engine-handler:{abandoned_project}")
    assert compose.invoke(EVENT)["statusCode"] == 200
    docker("volume", "rm", f"{compose.project}_left")


async def test_churn_runs_against_the_compose_stack(compose: ComposeStack) -> None:
    output = compose("run", "--rm", "--no-deps", "--build", "churn", "demo")
    assert "20 connections" in output
    assert output.count("Amber Bakery") == 5
    assert "of 20 connections: " in output
