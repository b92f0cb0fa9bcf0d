"""PgBouncer as a Fargate task starts it: secrets from the environment, a certificate of our making,
its queue told to CloudWatch. The scripts are those of the image; only their absolute paths are
other ones here, and Postgres, whose laboratory build has no TLS, is asked for none."""

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
import pytest

from infra.aws import certificate, deploy
from infra.database import roles
from infra.local import ROOT, machine
from infra.local.server import account, free_port
from infra.local.stack import DATABASE, Stack
from tests.conftest import eventually
from tests.infra.deployment import deployment

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

    def said(self) -> str:
        return (self.folder / "log").read_text()


def image(folder: Path) -> int:
    """The image's files below `folder`, and the port that takes the place of the image's."""
    port = free_port()
    program = machine.pgbouncer()
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
    for path in [folder, *folder.rglob("*")]:
        account().own(path, 0o700 if path.is_dir() or path.parent.name == "bin" else 0o600)
    (folder / "pgbouncer").chmod(0o700)
    return port


@pytest.fixture
def container(stack: Stack) -> Iterator[Container]:
    """PgBouncer begun by the image's entry point with the environment of the task definition."""
    made = certificate.make(deploy.POOLER)
    lookup = stack.settings(user=roles.LOOKUP).password.get_secret_value()
    values = {
        "DB_HOST": stack.postgres.host,
        "DB_PORT": str(stack.postgres.port),
        "DB_NAME": DATABASE,
        "LOOKUP_PASSWORD": lookup,
        "TLS_CERTIFICATE": made["certificate"],
        "TLS_KEY": made["key"],
    }
    told = {each["Name"] for each in PGBOUNCER["Environment"] + PGBOUNCER["Secrets"]}
    environment = {name: values[name] for name in told}
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
            **account().popen,  # type: ignore[call-overload]  # user, group: see Account
        )
    running = Container(folder, port, process, made["ca"], values)
    try:
        eventually(lambda: "process up" in running.said() or process.poll() is not None)
        assert process.poll() is None, running.said()
        yield running
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def tls(container: Container) -> ssl.SSLContext:
    """As the handler checks it, and as strictly as Python 3.13 does by default."""
    context = ssl.create_default_context(cadata=container.ca)
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


async def connect(container: Container, stack: Stack, name: str) -> "asyncpg.Connection[Any]":
    """As the function: by the name in the certificate, which is this machine's here."""
    context = tls(container)
    wrapped = context.wrap_bio

    def by_name(*args: Any, **more: Any) -> ssl.SSLObject:
        return wrapped(*args, **{**more, "server_hostname": name})

    context.wrap_bio = by_name  # type: ignore[method-assign]  # in place of a DNS of ours
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


async def test_it_starts_with_what_the_task_is_told_and_serves_by_its_name(
    container: Container, stack: Stack
) -> None:
    connection = await connect(container, stack, deploy.POOLER)
    assert await connection.fetchval("SELECT count(*) FROM orders") >= 1000
    await connection.close()
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
        await connect(container, stack, "pooler.example")


def test_no_secret_is_left_in_its_environment_or_its_log(container: Container) -> None:
    environment = Path(f"/proc/{container.process.pid}/environ")
    if environment.exists():  # Linux
        assert b"DB_HOST" in environment.read_bytes()
        assert b"PASSWORD" not in environment.read_bytes()
        assert b"TLS_KEY" not in environment.read_bytes()
    assert container.environment["LOOKUP_PASSWORD"] not in container.said()
    written = [path for path in (container.folder / "run").rglob("*") if path.is_file()]
    assert {path.name for path in written} >= {"userlist.txt", "site.ini", "server.key"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in written)


async def test_it_leaves_when_its_queries_are_done(container: Container, stack: Stack) -> None:
    """The image's STOPSIGNAL, which ECS sends: an idle client does not keep it."""
    connection = await connect(container, stack, deploy.POOLER)
    await connection.fetchval("SELECT 1")
    container.process.send_signal(signal.SIGINT)
    assert eventually(lambda: container.process.poll() is not None, PGBOUNCER["StopTimeout"])
    connection.terminate()


@pytest.mark.parametrize("missing", ["LOOKUP_PASSWORD", "TLS_CERTIFICATE", "TLS_KEY"])
def test_without_a_secret_it_does_not_start_and_says_which(
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


def test_its_queue_is_a_line_that_cloudwatch_counts(container: Container, tmp_path: Path) -> None:
    """psql, which is the image's, is played: the laboratory's speaks no TLS."""
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
            **{each["Name"]: each["Value"] for each in METRICS["Environment"]},
        },
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        said = json.loads(process.stdout.readline())
        process.send_signal(signal.SIGINT)  # the image's STOPSIGNAL
        eventually(lambda: process.poll() is not None)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with its sleep
        process.wait()
        process.stdout.close()
    metrics = said["_aws"]["CloudWatchMetrics"][0]
    assert {each["Name"] for each in metrics["Metrics"]} == {"cl_waiting", "sv_active", "maxwait"}
    assert (said["cl_waiting"], said["sv_active"], said["maxwait"]) == (7, 10, 1.25)
    # What the alarms watch.
    for place in ("Alarms/PoolWaits", "Alarms/PoolQueue"):
        alarm = deployment().resources[place]["Properties"]
        assert alarm["Namespace"] == metrics["Namespace"]
        assert alarm["MetricName"] in said
        names = [each["Name"] for each in alarm["Dimensions"]]
        assert [names] == metrics["Dimensions"]
        assert all(said[name] for name in names)
