"""The commands that a person types work: `make demo`, `make run`, `make doctor` and others."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from infra.local import ROOT
from infra.local.server import free_port
from infra.local.stack import DATABASE, Stack
from tests.conftest import command, run


@pytest.fixture(scope="module")
def demo() -> list[str]:
    status, output = run("-m", "infra.local", "demo")
    assert status == 0, output
    return output.splitlines()


def rows(demo: list[str], kind: str) -> list[list[str]]:
    return [line.split(maxsplit=4) for line in demo if line.startswith(kind)]


def test_the_demo_prints_a_cold_and_a_warm_read(demo: list[str]) -> None:
    assert len(rows(demo, "cold")) == 1
    assert len(rows(demo, "warm")) >= 2
    for _, milliseconds, _, _, body in rows(demo, "cold") + rows(demo, "warm"):
        assert float(milliseconds) > 0
        assert json.loads(body) == {"id": 1, "customer_name": "Amber Bakery", "status": "pending"}


def test_the_demo_sandbox_is_one_process_with_one_backend(demo: list[str]) -> None:
    reads = rows(demo, "cold") + rows(demo, "warm")
    sandboxes = {row[2] for row in reads}
    assert len(sandboxes) == 1
    assert len({row[3] for row in reads}) == 1
    fleet = re.search(r"this one is (\d+)", "\n".join(demo))
    assert fleet is not None
    assert fleet[1] not in sandboxes


def test_the_demo_counts_backends_and_clients(demo: list[str]) -> None:
    text = "\n".join(demo)
    assert "Postgres   3 of 20 connections: 1 appuser, 1 pooler_lookup, 1 postgres" in text
    assert "PgBouncer  1 client: appuser" in text


def test_the_demo_prints_the_sandbox_log_after_the_table(demo: list[str]) -> None:
    """Two processes write to one pipe here, as with `make demo | less`."""
    log_line_numbers = [number for number, line in enumerate(demo) if '"requestId"' in line]
    invocations = rows(demo, "cold") + rows(demo, "warm")
    assert len(log_line_numbers) == len(invocations)
    [heading] = [number for number, line in enumerate(demo) if line.startswith("log ")]
    assert log_line_numbers == list(range(heading + 1, heading + 1 + len(log_line_numbers)))
    # Another test may run a stack at the same time, which the demo then mentions.
    other_lines = [line for line in demo if line and '"requestId"' not in line]
    first_words = [line.split()[0] for line in other_lines if "endpoints.json" not in line]
    assert first_words == [
        *("starting", "starting", "starting", "stack", "sandbox", "ms", "cold"),
        *("warm",) * (len(invocations) - 1),
        *("Postgres", "PgBouncer", "log", "stopped"),
    ]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    """Start `make run` and return its URL."""
    port = free_port()
    process = command("-m", "infra.local", "run", "--port", str(port))
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("serving"):
            break
    yield f"http://127.0.0.1:{port}"
    process.send_signal(signal.SIGINT)
    output = process.stdout.read()
    process.stdout.close()
    assert process.wait(30) == 0
    assert "nothing is left running" in output


def status_and_body(url: str) -> tuple[int, object]:
    try:
        with urllib.request.urlopen(url, timeout=30) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/orders/1", 200),
        ("/orders/999999", 404),
        ("/orders/0", 422),
        ("/orders/2147483648", 422),
        ("/orders/abc", 422),
        ("/health", 200),
        ("/ready", 200),
        ("/nothing", 404),
    ],
)
def test_make_run_serves_requests(base_url: str, path: str, status: int) -> None:
    actual_status, body = status_and_body(base_url + path)
    assert actual_status == status
    if status >= 400:
        assert isinstance(body, dict)
        assert body["status"] == status
        assert body["detail"]


def test_a_port_in_use_is_reported_with_a_hint() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, output = run("-m", "infra.local", "run", "--port", str(port))
    assert status == 1
    assert output == (
        f"warm-engine: port {port} on 127.0.0.1: Address already in use. "
        f"Choose another: make run PORT={port + 1}\n"
    )


@pytest.mark.parametrize(
    "arguments", [[], ["nonsense"], ["run", "--port", "0"], ["run", "--port", "x"]]
)
def test_invalid_arguments_exit_with_status_2(arguments: list[str]) -> None:
    status, output = run("-m", "infra.local", *arguments)
    assert status == 2
    assert "usage:" in output
    assert "Traceback" not in output


def run_handler(stack: Stack, *arguments: str, **environment: str) -> tuple[int, str]:
    """Run `python -m handler` and return its exit status and output."""
    return run("-m", "handler", *arguments, env=stack.environment() | environment)


def test_python_m_handler_prints_the_order(stack: Stack) -> None:
    assert run_handler(stack, "1") == (0, "Order 1: Amber Bakery — pending\n")
    assert run_handler(stack, "2147483647") == (0, "Order not found.\n")


@pytest.mark.parametrize("arguments", [[], ["0"], ["2147483648"], ["abc"], ["1", "2"]])
def test_an_invalid_order_id_is_a_usage_error(stack: Stack, arguments: list[str]) -> None:
    status, output = run_handler(stack, *arguments)
    assert status == 2
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"DB_PORT": "1"}, "cannot be reached: .*check that PgBouncer runs at DB_HOST and DB_PORT"),
        ({"DB_HOST": "nowhere.invalid"}, "cannot be reached: .*DB_HOST"),
        ({"DB_PASS": "wrong"}, "authentication failed .check DB_USER, DB_PASS and DB_NAME"),
        ({"DB_USER": "nobody"}, "authentication failed .check DB_USER, DB_PASS and DB_NAME"),
        ({"DB_NAME": "nothing"}, "authentication failed .check .*DB_NAME"),
        ({"DB_SSLMODE": "disable"}, "SSL required"),
        (
            {"DB_PORT": "x", "DB_POOL_SIZE": "0"},
            "DB_PORT is a string of 1 characters: .*DB_POOL_SIZE is '0': ",
        ),
        ({"DB_SSLROOTCERT": __file__}, "DB_SSLROOTCERT: .*Allowed: the path of"),
        ({"DB_SSLROOTCERT": ""}, "TLS with the server failed: .*DB_SSLROOTCERT"),
        ({"DB_HOST": "127.0.0.2"}, "cannot be reached"),
    ],
)
def test_an_error_is_reported_in_one_line_without_the_password(
    stack: Stack, environment: dict[str, str], message: str
) -> None:
    status, output = run_handler(stack, "1", **environment)
    assert status == 1
    assert re.match(f"handler: .*{message}", output), output
    assert output.count("\n") == 1
    assert stack.settings().password.get_secret_value() not in output


def test_a_database_without_tables_is_reported(stack: Stack) -> None:
    direct = {"DB_PORT": str(stack.postgres.port), "DB_SSLMODE": "disable", "DB_NAME": "postgres"}
    status, output = run_handler(stack, "1", **direct)
    assert (status, output.count("\n")) == (1, 1)
    assert "run the migrations" in output


def test_a_server_without_tls_is_reported(stack: Stack) -> None:
    status, output = run_handler(stack, "1", DB_PORT=str(stack.postgres.port))
    assert (status, output.count("\n")) == (1, 1)
    assert "the server refused TLS" in output


def test_an_unresponsive_server_times_out(stack: Stack) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = str(silent.getsockname()[1])
        status, output = run_handler(stack, "1", DB_PORT=port, DB_CONNECT_TIMEOUT="0.3")
    assert (status, output.count("\n")) == (1, 1)
    assert "did not answer in time" in output


def test_a_certificate_for_another_address_is_rejected(stack: Stack) -> None:
    with stack.another_pgbouncer(settings={"listen_addr": "127.0.0.1,127.0.0.3"}) as bouncer:
        environment = stack.environment(bouncer)
        assert run("-m", "handler", "1", env=environment)[0] == 0
        status, output = run("-m", "handler", "1", env=environment | {"DB_HOST": "127.0.0.3"})
    assert status == 1
    assert "TLS with the server failed: IP address mismatch" in output


def test_a_certificate_from_another_ca_is_rejected(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        status, output = run_handler(stack, "1", DB_PORT=str(bouncer.port))
    assert status == 1
    assert "TLS with the server failed: unable to get local issuer certificate" in output


def test_the_doctor_lists_what_is_installed() -> None:
    status, output = run("-m", "infra.local.doctor")
    assert status == 0
    for component in ("Python", "packages", "Postgres", "PgBouncer", "disk", "account"):
        assert re.search(rf"^{component} +(ok|skipped) ", output, re.M), output


def test_the_doctor_lists_what_is_missing_with_a_hint(tmp_path: Path) -> None:
    status, output = run("-m", "infra.local.doctor", env={"PGBOUNCER": str(tmp_path / "none")})
    assert status == 1
    assert re.search(r"^PgBouncer +missing .*: No such file or dir.*Install one", output, re.M)
    assert output.endswith("not ready: PgBouncer\n")


def test_the_doctor_reports_a_role_with_changed_settings(own_stack: Stack, tmp_path: Path) -> None:
    # Run in a copy, because another test's stack may be published in this folder.
    for package in ("handler", "infra"):
        shutil.copytree(ROOT / package, tmp_path / package)

    def roles_row() -> str:
        process = subprocess.run(
            [sys.executable, "-m", "infra.local.doctor"],
            cwd=tmp_path,
            env=os.environ | {"VENV": sys.prefix},
            capture_output=True,
            text=True,
        )
        match = re.search(r"^roles +(.*)", process.stdout, re.M)
        assert match is not None, process
        return match[1]

    assert roles_row().startswith("skipped ")
    with own_stack.published(tmp_path / ".stack/endpoints.json"):
        assert roles_row().startswith("ok ")
        change = "ALTER ROLE appuser SET default_transaction_read_only = on"
        with psycopg.connect(**own_stack.postgres.admin, dbname=DATABASE, autocommit=True) as admin:
            admin.execute(change)
        assert re.search(r"^changed +.*default_transaction_read_only is on", roles_row())
