"""PgBouncer as a Fargate task: secrets from the environment, our certificate, metrics to
CloudWatch.

The scripts are those of the image with other paths, and connections to the lab's Postgres do not
use TLS.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import jsonschema
import pytest

from infra.aws import certificate, trust
from infra.database import roles
from infra.local import ROOT, system_packages
from infra.local.server import account, free_port
from infra.local.stack import DATABASE, Stack
from tests.conftest import eventually
from tests.infra.deployment import deployment
from tests.integration.test_log_line import EMF_SCHEMA

POOLER_HOST = trust.pooler_host("warm-engine")

TASK = deployment().resources["Pooler/Task"]["Properties"]
PGBOUNCER, METRICS = TASK["ContainerDefinitions"]


@dataclass
class Container:
    """`folder` stands for the container's root."""

    folder: Path
    port: int
    process: "subprocess.Popen[bytes]"
    ca: str
    environment: dict[str, str]

    def log_text(self) -> str:
        return (self.folder / "log").read_text()


def image(folder: Path) -> int:
    """Copy the image's files below `folder`; return the port used in place of the image's."""
    port = free_port()
    program = system_packages.find_pgbouncer()
    assert program is not None
    for name in ("etc/pgbouncer", "etc/warm-engine", "run/pgbouncer", "run/secrets", "bin"):
        (folder / name).mkdir(parents=True)
    for name in ("pgbouncer.ini", "1.21.ini"):
        shutil.copy(ROOT / "pgbouncer" / name, folder / "etc/pgbouncer")
    if program.version < (1, 21):
        (folder / "etc/pgbouncer/1.21.ini").write_text("")
    for script in ("pgbouncer/entrypoint.sh", "infra/aws/fargate.sh", "infra/aws/pool_metrics.sh"):
        text = (ROOT / script).read_text()
        text = re.sub(r"(?<![\w.])/(run|etc)/", rf"{folder}/\1/", text)
        text = text.replace("6432", str(port)).replace("= verify-full", "= disable")
        (folder / "bin" / Path(script).name).write_text(text)
    if program.libraries:
        shutil.copytree(program.libraries, folder / "lib", symlinks=True)
    started = f"LD_LIBRARY_PATH={folder}/lib exec {shutil.copy(program.path, folder)}"
    (folder / "bin/pgbouncer").write_text(f'#!/bin/sh\n{started} "$@"\n')
    (folder / "etc/warm-engine/rds.pem").write_text("no CA: see above\n")
    (folder / "log").touch()
    for path in [folder, *(file for file in folder.rglob("*") if not file.is_symlink())]:
        account().take_ownership(
            path, 0o700 if path.is_dir() or path.parent.name == "bin" else 0o600
        )
    (folder / "pgbouncer").chmod(0o700)
    return port


@pytest.fixture
def container(stack: Stack) -> Iterator[Container]:
    """Start PgBouncer with the image's entry point and the task definition's environment."""
    issued = certificate.make(POOLER_HOST)
    values = {
        "DB_HOST": stack.postgres.host,
        "DB_PORT": str(stack.postgres.port),
        "DB_NAME": DATABASE,
        "LOOKUP_PASSWORD": stack.settings(user=roles.LOOKUP).password.get_secret_value(),
        "TLS_CERTIFICATE": issued["certificate"],
        "TLS_KEY": issued["key"],
    }
    names = {variable["Name"] for variable in PGBOUNCER["Environment"] + PGBOUNCER["Secrets"]}
    environment = {name: values[name] for name in names}
    folder = stack.folder / "fargate"
    folder.mkdir()
    port = image(folder)
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [str(folder / "bin/fargate.sh")],
            env={**environment, "PATH": f"{folder}/bin:{os.defpath}:/usr/bin:/bin"},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            **account().popen_options,  # type: ignore[call-overload]  # user, group: see Account
        )
    running = Container(folder, port, process, issued["ca"], values)
    try:
        eventually(lambda: "process up" in running.log_text() or process.poll() is not None)
        assert process.poll() is None, running.log_text()
        yield running
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def tls(container: Container) -> ssl.SSLContext:
    """Verify as the handler does, and as strictly as Python 3.13 does by default."""
    context = ssl.create_default_context(cadata=container.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def connect(container: Container, stack: Stack, name: str) -> "asyncpg.Connection[Any]":
    """Connect as the function does, by the name in the certificate, which resolves to localhost
    here."""
    context = tls(container)
    wrapped = context.wrap_bio

    def by_name(*args: Any, **more: Any) -> ssl.SSLObject:
        return wrapped(*args, **{**more, "server_hostname": name})

    context.wrap_bio = by_name  # type: ignore[method-assign]  # instead of a DNS server
    settings = stack.settings()
    return await asyncpg.connect(
        host="127.0.0.1",
        port=container.port,
        user=settings.user,
        password=settings.password.get_secret_value(),
        database=DATABASE,
        ssl=context,
        statement_cache_size=0,
    )


async def test_pgbouncer_starts_from_the_task_definition_and_serves(
    container: Container, stack: Stack
) -> None:
    connection = await connect(container, stack, POOLER_HOST)
    assert await connection.fetchval("SELECT count(*) FROM orders") >= 1000
    await connection.close()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await connect(container, stack, "pooler.example")


def test_no_secret_remains_in_the_environment_or_the_log(container: Container) -> None:
    environment = Path(f"/proc/{container.process.pid}/environ")
    if environment.exists():  # Linux
        assert b"DB_HOST" in environment.read_bytes()
        assert b"PASSWORD" not in environment.read_bytes()
        assert b"TLS_KEY" not in environment.read_bytes()
    assert container.environment["LOOKUP_PASSWORD"] not in container.log_text()
    written = [path for path in (container.folder / "run").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"userlist.txt", "site.ini", "server.key"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


async def test_it_exits_after_its_queries_finish(container: Container, stack: Stack) -> None:
    """ECS sends the image's STOPSIGNAL; an idle client does not delay it."""
    connection = await connect(container, stack, POOLER_HOST)
    await connection.fetchval("SELECT 1")
    container.process.send_signal(signal.SIGINT)
    assert eventually(lambda: container.process.poll() is not None, PGBOUNCER["StopTimeout"])
    connection.terminate()


def test_invalid_new_files_are_rejected_before_a_reload(container: Container) -> None:
    """PgBouncer would log `RELOAD`, keep the old files, and fail at the next start."""
    folder, before = container.folder, len(container.log_text())
    secrets = folder / "run/secrets"

    def reload() -> "subprocess.CompletedProcess[str]":
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [folder / "bin/entrypoint.sh", "reload"],
            env={**container.environment, "PATH": f"{folder}/bin:{os.defpath}:/usr/bin:/bin"},
            cwd=folder / "run/pgbouncer",
            capture_output=True,
            text=True,
            timeout=30,
            **account().popen_options,  # type: ignore[call-overload]  # user, group: see Account
        )
        return done

    right = (secrets / "server.key").read_text()
    for wrong in ("no key\n", certificate.make(POOLER_HOST)["key"]):
        account().write(secrets / "server.key", wrong)
        refused = reload()
        assert refused.returncode == 1
        assert re.search("entrypoint: not reloaded: .*TLS setup failed", refused.stderr, re.S)
        assert "server." in refused.stderr  # the file's name
        assert "TLS" not in container.log_text()[before:]
    account().write(secrets / "server.key", right)
    accepted = reload()
    assert accepted.returncode == 0, accepted.stderr
    eventually(lambda: "SIGHUP" in container.log_text()[before:])
    assert container.process.poll() is None


@pytest.mark.parametrize("missing", ["LOOKUP_PASSWORD", "TLS_CERTIFICATE", "TLS_KEY"])
def test_a_missing_secret_is_named_and_prevents_the_start(
    missing: str, container: Container
) -> None:
    values = {name: value for name, value in container.environment.items() if name != missing}
    done = subprocess.run(
        [str(container.folder / "bin/fargate.sh")],
        env={**values, "PATH": f"{container.folder}/bin:{os.defpath}"},
        capture_output=True,
        text=True,
        timeout=30,
        cwd=container.folder,
    )
    assert done.returncode != 0
    assert missing in done.stderr


def test_the_queue_length_is_logged_as_a_metric(container: Container, tmp_path: Path) -> None:
    """psql, which is part of the image, is a fake: the lab's has no TLS."""
    table = (
        "database,user,cl_active,cl_waiting,sv_active,maxwait,maxwait_us,pool_mode\n"
        "storefront,appuser,3,7,10,1,250000,transaction\n"
        "storefront,pooler_lookup,0,9,1,9,0,transaction\n"
        "pgbouncer,pgbouncer,1,0,0,0,0,statement\n"
    )
    psql = container.folder / "bin/psql"
    psql.write_text(f"#!/bin/sh\n[ -n \"$PGPASSWORD\" ] || exit 1\nprintf '{table}'\n")
    psql.chmod(0o755)
    process = subprocess.Popen(
        [str(container.folder / "bin" / METRICS["EntryPoint"][0])],
        env={
            "PATH": f"{container.folder}/bin:{os.defpath}:/usr/bin:/bin",
            **{variable["Name"]: variable["Value"] for variable in METRICS["Environment"]},
        },
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        output = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)  # the image's STOPSIGNAL
        eventually(lambda: process.poll() is not None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # including its sleep
        process.wait()
        process.stdout.close()
    metrics = output["_aws"]["CloudWatchMetrics"][0]
    assert {metric["Name"] for metric in metrics["Metrics"]} == {
        *("cl_waiting", "cl_active", "sv_active", "maxwait"),
    }
    jsonschema.validate(output, EMF_SCHEMA)
    assert (output["cl_waiting"], output["sv_active"], output["maxwait"]) == (7, 10, 1.25)
    # The metrics that the alarms use.
    for place in ("Alarms/PoolWaits", "Alarms/PoolQueue"):
        alarm = deployment().resources[place]["Properties"]
        assert alarm["Namespace"] == metrics["Namespace"]
        assert alarm["MetricName"] in output
        names = [dimension["Name"] for dimension in alarm["Dimensions"]]
        assert [names] == metrics["Dimensions"]
        assert all(output[name] for name in names)
