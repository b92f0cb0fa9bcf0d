"""Cancelling, connecting and closing take a limited time and waste few connections."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import boto3
import httpx
import psutil
import pytest
from sqlalchemy import Integer, bindparam, literal, select, text
from sqlalchemy.orm import Session

from handler.warm import DatabaseError, dispose, get_engine, ping, prewarm, run, session
from handler.warm.database.connection import connector
from handler.warm.settings import Settings
from infra.database.roles import APP
from infra.local import ROOT
from infra.local.server import free_port
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import (
    PgConnection,
    app_clients,
    command,
    eventually,
    reset_engine_cache,
    set_environment,
)
from tests.events import http_api
from tests.integration.backends import locked_row, stays_idle


@pytest.fixture
async def admin(module_admin: PgConnection) -> PgConnection:
    await module_admin.execute(f"GRANT UPDATE ON orders TO {APP}")
    return module_admin


def configure(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    set_environment(monkeypatch, environment)
    reset_engine_cache()


# --- Cancelled by the host -----------------------------------------------------------------------


async def in_run() -> None:
    await run(lambda s: s.execute(text("SELECT pg_sleep(20)")))


async def in_session() -> None:
    async with session() as s:
        await s.execute(text("SELECT pg_sleep(20)"))


async def in_the_engine() -> None:
    async with get_engine().connect() as connection:
        await connection.execute(text("SELECT pg_sleep(20)"))


@pytest.mark.parametrize("path", ["direct", "pgbouncer"])
@pytest.mark.parametrize("query", [in_run, in_session, in_the_engine], ids=lambda q: q.__name__)
async def test_repeated_anyio_cancellation_ends_the_query_on_the_server(
    module_stack: Stack,
    admin: PgConnection,
    monkeypatch: pytest.MonkeyPatch,
    query: Callable[[], Any],
    path: str,
) -> None:
    configure(monkeypatch, module_stack.environment(direct=path == "direct"))
    try:
        for _ in range(5):
            await ping()
            with anyio.move_on_after(0.1):
                await query()
            await asyncio.sleep(0.15)
            assert await stays_idle(admin, 0.1)
    finally:
        await dispose()


async def test_a_client_disconnecting_from_uvicorn_cancels_its_query(
    module_stack: Stack, admin: PgConnection
) -> None:
    port = free_port()
    process = command(
        *("-m", "uvicorn", "--port", str(port), "tests.integration.late_routes:app"),
        env=module_stack.environment() | {"MIDDLEWARE": "1"},
    )
    try:
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as caller:
            async with asyncio.timeout(20):
                while True:
                    try:
                        await caller.get("/now")
                        break
                    except httpx.ConnectError:
                        await asyncio.sleep(0.1)
            async with locked_row(module_stack):
                async with caller.stream("GET", "/stream") as response:
                    async for part in response.aiter_text():
                        assert part == "first"
                        break
                await asyncio.sleep(0.3)
                assert await stays_idle(admin, 0.3)
            assert (await caller.get("/now")).status_code == 200
    finally:
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)


# --- The init phase ------------------------------------------------------------------------------

INIT = """
import json, sys, time
import handler.app  # before the clock starts, because this takes seconds without bytecode
started = time.monotonic()
import handler.main
print("duration", time.monotonic() - started, flush=True)
sys.stdin.readline()
event = json.loads(sys.stdin.readline())
print("status", handler.main.handler(event, None)["statusCode"], flush=True)
"""


def init_with_a_silent_server(environment: dict[str, str], resume: Callable[[], None]) -> float:
    """Import the handler while the server is silent, and return the duration in seconds.

    Then resume the server and check that the handler serves a request.
    """
    process = subprocess.Popen(
        [sys.executable, "-c", INIT],
        cwd=ROOT,
        env={**os.environ, **environment, "DB_PREWARM": "on"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    try:
        lines = (line for line in process.stdout if line.startswith(("duration", "status")))
        duration = float(next(lines).split()[1])
        resume()
        process.stdin.write("\n" + json.dumps(http_api("GET", "/orders/1")) + "\n")
        process.stdin.flush()
        assert next(lines) == "status 200\n"
    finally:
        process.kill()
        process.communicate()
    return duration


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_init_with_an_unresponsive_server_ends_within_five_seconds(
    module_stack: Stack, tls: bool
) -> None:
    with module_stack.another_pgbouncer(tls=tls) as bouncer:
        environment = module_stack.environment(through=bouncer)
        with TcpProxy(bouncer.host, bouncer.port) as proxy:
            proxy.stall()
            environment |= {"DB_PORT": str(proxy.port), "DB_CONNECT_TIMEOUT": "20"}
            assert init_with_a_silent_server(environment, proxy.resume) < 5


def test_init_with_a_server_silent_after_login_ends_within_five_seconds(
    module_stack: Stack,
) -> None:
    with module_stack.another_pgbouncer() as bouncer:
        assert module_stack.postgres.process
        postmaster = module_stack.postgres.process.pid
        login = subprocess.run(  # so that PgBouncer knows the login
            [sys.executable, "-m", "handler", "1"],
            cwd=ROOT,
            env={**os.environ, **module_stack.environment(through=bouncer)},
        )
        assert login.returncode == 0
        os.killpg(postmaster, signal.SIGSTOP)
        try:
            duration = init_with_a_silent_server(
                module_stack.environment(through=bouncer),
                lambda: os.killpg(postmaster, signal.SIGCONT),
            )
        finally:
            os.killpg(postmaster, signal.SIGCONT)
    assert duration < 5


def test_init_with_an_unresponsive_secrets_manager_ends_within_five_seconds(
    module_stack: Stack, aws: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    login = {"username": APP, "password": module_stack.environment()["DB_PASS"]}
    secret = boto3.client("secretsmanager").create_secret(
        Name="app", SecretString=json.dumps(login)
    )
    address = urlsplit(aws)
    assert address.hostname
    assert address.port
    with TcpProxy(address.hostname, address.port) as proxy:
        proxy.stall()
        environment = module_stack.environment() | {
            "DB_AUTH": "secret",
            "DB_SECRET_ARN": secret["ARN"],
            "AWS_ENDPOINT_URL": f"http://{proxy.host}:{proxy.port}",
        }
        assert init_with_a_silent_server(environment, proxy.resume) < 5


# --- Addresses -----------------------------------------------------------------------------------


@contextmanager
def silent_address(host: str, port: int) -> Iterator[None]:
    """Listen on an address with a full queue, so that every SYN to it is dropped."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(0)
        clients = [socket.socket(family) for _ in range(4)]
        for client in clients:
            client.setblocking(False)
            client.connect_ex((host, port))
        time.sleep(0.1)  # the kernel completes the handshakes that fit the queue
        yield
        for client in clients:
            client.close()


REAL_GETADDRINFO = socket.getaddrinfo


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Resolve `database.test` to these addresses, in this order."""
    real = REAL_GETADDRINFO

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if host != "database.test":
            return real(host, *args, **options)
        return [result for address in addresses for result in real(address, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as listener:
            listener.bind(("::1", 0))
    except OSError:
        return False
    return True


@asynccontextmanager
async def silent_after_tls(tls: ssl.SSLContext) -> AsyncIterator[int]:
    """Start a server that completes the TLS handshake and then is silent; yield its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(8)  # SSLRequest
        writer.write(b"S")
        await writer.start_tls(tls)
        writer.transport.pause_reading()  # type: ignore[attr-defined]  # a transport for both directions
        await is_over.wait()
        writer.transport.abort()

    is_over = asyncio.Event()
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    is_over.set()
    server.close()


@pytest.mark.parametrize("silent", ["127.0.0.77", "::1"])
@pytest.mark.parametrize("is_first", [True, False], ids=["first", "last"])
async def test_an_unresponsive_address_costs_less_than_half_a_second(
    module_stack: Stack, monkeypatch: pytest.MonkeyPatch, silent: str, is_first: bool
) -> None:
    if silent == "::1" and not has_ipv6():
        pytest.skip("this machine has no IPv6")
    bouncer = module_stack.pgbouncer
    resolve_to(monkeypatch, *([silent, bouncer.host] if is_first else [bouncer.host, silent]))
    settings = module_stack.settings(through=bouncer, host="database.test", sslmode="verify-ca")
    connect = connector(settings)

    async def timed_login() -> float:
        started = time.monotonic()
        await (await connect()).close()
        return time.monotonic() - started

    async def hundred_logins() -> list[float]:
        times: list[float] = []
        for _ in range(10):
            times += await asyncio.gather(*(timed_login() for _ in range(10)))
        return times

    with silent_address(silent, bouncer.port):
        times = await hundred_logins()
    resolve_to(monkeypatch, bouncer.host)
    usual_times = await hundred_logins()
    assert statistics.median(times) - statistics.median(usual_times) < 0.5
    assert max(times) < settings.connect_timeout


async def test_unresponsive_addresses_are_reported_in_time(
    module_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    resolve_to(monkeypatch, "127.0.0.77", "127.0.0.78")
    configure(
        monkeypatch,
        module_stack.environment()
        | {"DB_HOST": "database.test", "DB_PORT": str(port), "DB_CONNECT_TIMEOUT": "0.8"},
    )
    with silent_address("127.0.0.77", port), silent_address("127.0.0.78", port):
        started = time.monotonic()
        with pytest.raises(DatabaseError) as error_info:
            await ping()
        assert time.monotonic() - started < 1.2
    assert error_info.value.failure.status == 503
    await dispose()


def sockets_to(port: int) -> int:
    connections = psutil.Process().net_connections("tcp")
    return sum(1 for item in connections if item.raddr and item.raddr.port == port)


@pytest.fixture
def without_garbage_collection() -> Iterator[None]:
    """Disable garbage collection, which cannot close sockets while a sandbox is frozen."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("without_garbage_collection")
async def test_a_cancelled_connection_attempt_leaves_no_socket() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        connect = connector(
            Settings(host="127.0.0.1", port=port, password="unused", sslmode="disable")
        )
        for turns in range(25):
            attempt = asyncio.ensure_future(connect())
            for _ in range(turns):
                await asyncio.sleep(0)
            attempt.cancel()
            await asyncio.wait([attempt])
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            assert sockets_to(port) == 0, f"cancelled after {turns} turns of the event loop"


async def test_a_login_that_times_out_within_tls_leaves_no_socket(
    server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    async with silent_after_tls(server_tls) as port:
        settings = Settings(
            host="127.0.0.1",
            port=port,
            password="unused",
            connect_timeout=0.3,
            sslmode="verify-full",
            sslrootcert=tmp_path / "ca.pem",
        )
        with pytest.raises(TimeoutError):
            await connector(settings)()
        await asyncio.sleep(0)
        open_sockets = sockets_to(port)
    await asyncio.to_thread(eventually, lambda: not sockets_to(port), 5)  # by the server's FIN
    assert open_sockets == 0


async def test_an_unanswered_close_ends_in_time_without_an_error(module_stack: Stack) -> None:
    bouncer = module_stack.pgbouncer
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        settings = module_stack.settings(through=bouncer, port=proxy.port, sslmode="require")
        connection = await connector(settings)()
        proxy.drop("requests", "responses")
        started = time.monotonic()
        await connection.close()
        assert time.monotonic() - started < 2
        assert connection.is_closed()


# --- The pool ------------------------------------------------------------------------------------


def send_invalid_value(s: Session) -> None:
    s.scalar(select(bindparam("n", 2**40, Integer) + literal(1)))


def time_out(s: Session) -> None:
    s.execute(text("SELECT pg_sleep(5)"))


@pytest.mark.parametrize(("work", "lost_connections"), [(send_invalid_value, 0), (time_out, 1)])
async def test_a_driver_failure_costs_at_most_one_connection_of_ten(
    module_stack: Stack,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Session], None],
    lost_connections: int,
) -> None:
    bouncer = module_stack.pgbouncer
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        configure(
            monkeypatch,
            module_stack.environment()
            | {"DB_PORT": str(proxy.port), "DB_POOL_SIZE": "10", "DB_PREWARM": "required"}
            | {"DB_COMMAND_TIMEOUT": "0.5"},
        )
        await prewarm()
        assert proxy.connections == 10
        proxy.reset_counters()
        with pytest.raises(DatabaseError):
            await run(work)
        await asyncio.gather(*(ping() for _ in range(10)))
        assert proxy.connections <= 2 * lost_connections  # with a cancel request for each
        await dispose()


async def test_closing_an_already_closed_connection_logs_nothing(
    module_stack: Stack, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """This happens when an execution environment ends after PgBouncer's client_idle_timeout."""
    settings: dict[str, str | int] = {"client_idle_timeout": 1}
    with module_stack.another_pgbouncer(tls=True, settings=settings) as bouncer:
        configure(monkeypatch, module_stack.environment(through=bouncer))
        await ping()
        # The loop does not run meanwhile, as between invocations.
        eventually(lambda: not app_clients(bouncer))
        with caplog.at_level(logging.WARNING):
            await dispose()
            await asyncio.sleep(0.1)
    assert caplog.records == []
