"""Restored snapshots share nothing, and each process of a Managed Instance has its own engine."""

import contextlib
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from infra.local.fleet import Sandbox
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import app_clients, eventually
from tests.events import http_api

READ = http_api("GET", "/orders/1")
SNAP_START = {"AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}


@contextlib.asynccontextmanager
async def sandbox(log: Path, environment: dict[str, str]) -> AsyncIterator[Sandbox]:
    sandbox = await Sandbox.start("tests.runtime.random_numbers.handler", environment, log=log)
    try:
        yield sandbox
    finally:
        await sandbox.end()


@pytest.mark.parametrize("prewarm", ["off", "on"])
async def test_environments_restored_from_a_snapshot_share_nothing(
    stack: Stack, tmp_path: Path, prewarm: str
) -> None:
    with stack.another_pgbouncer() as bouncer, TcpProxy(bouncer.host, bouncer.port) as proxy:
        environment = stack.environment(bouncer) | SNAP_START
        environment |= {"DB_PORT": str(proxy.port), "DB_PREWARM": prewarm}
        async with sandbox(tmp_path / "log", environment) as snapshot_sandbox:
            await snapshot_sandbox._api.snapshot.wait()
            connections_in_snapshot = proxy.connections
            assert connections_in_snapshot == (1 if prewarm == "on" else 0)
            assert not app_clients(bouncer)  # the connection was closed before the snapshot
            await snapshot_sandbox.restore(2)
            if prewarm == "on":
                assert proxy.connections == connections_in_snapshot + 2
            first, second = await snapshot_sandbox.invoke_all([READ, READ], 10)
            assert (first["statusCode"], second["statusCode"]) == (200, 200)
            assert proxy.connections == connections_in_snapshot + 2  # one for each restore
            assert len({client["port"] for client in app_clients(bouncer)}) == 2
            for name in ("pid", "random", "uuid"):
                assert first[name] != second[name], name
        eventually(lambda: not app_clients(bouncer))
    assert "Traceback" not in (tmp_path / "log").read_text()


async def test_a_restored_environment_has_no_credential_from_the_snapshot(
    stack: Stack, tmp_path: Path, aws: str
) -> None:
    import boto3

    secrets_manager = boto3.client("secretsmanager")
    password = stack.settings().password.get_secret_value()
    arn = secrets_manager.create_secret(Name="app", SecretString=f'{{"password": "{password}"}}')[
        "ARN"
    ]
    with TcpProxy("127.0.0.1", int(aws.rpartition(":")[2])) as proxy:
        environment = stack.environment() | SNAP_START | {"DB_PREWARM": "on"}
        environment |= {"DB_AUTH": "secret", "DB_SECRET_ARN": arn, "DB_PASS": ""}
        environment |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
        environment["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{proxy.port}"
        async with sandbox(tmp_path / "log", environment) as snapshot_sandbox:
            await snapshot_sandbox._api.snapshot.wait()
            assert proxy.connections == 1
            await snapshot_sandbox.restore(2)
            assert proxy.connections == 3
            responses = await snapshot_sandbox.invoke_all([READ, READ], 10)
            assert [response["statusCode"] for response in responses] == [200, 200]


async def test_each_process_of_an_environment_has_its_own_engine(
    stack: Stack, tmp_path: Path
) -> None:
    """The number of processes of a Managed Instance therefore multiplies the connections."""
    with stack.another_pgbouncer() as bouncer:
        environment = stack.environment(bouncer) | {"AWS_LAMBDA_MAX_CONCURRENCY": "3"}
        async with sandbox(tmp_path / "log", environment) as instance:
            for _ in range(3):
                responses = await instance.invoke_all([READ] * 3, 10)
                assert [response["statusCode"] for response in responses] == [200] * 3
                assert len({response["pid"] for response in responses}) == 3
            assert len(app_clients(bouncer)) == 3
            assert len(instance._api.extensions) == 1
            for response in responses:
                os.kill(response["pid"], signal.SIGTERM)
            eventually(lambda: not app_clients(bouncer))
        assert bouncer.log_since_start().count("closing because: client close request") >= 3
        assert "client unexpected eof" not in bouncer.log_since_start()
