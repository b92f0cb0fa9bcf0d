"""A server that offers less security than configured does not receive the credential."""

import asyncio
import contextlib
import re
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from handler.warm.database.tls import tls_context
from handler.warm.request_policy import classify
from handler.warm.settings import Settings
from infra.local.stack import Stack
from tests.integration.engines import handler_engine
from tests.rds_proxy import SSL_REQUEST, RdsProxy

PASSWORD = "Zq9~Xw"
PASSWORD_REQUESTS = {
    "in clear text": struct.pack("!cii", b"R", 8, 3),
    "as MD5": struct.pack("!cii4s", b"R", 12, 5, b"salt"),
}


SASL = struct.pack("!cii15s", b"R", 23, 10, b"SCRAM-SHA-256\0\0")


class InsecureServer:
    """A server that sends the given password request, and records what it receives."""

    def __init__(self, request: bytes, tls: ssl.SSLContext | None, in_pieces: bool = False) -> None:
        self._request, self._tls, self._in_pieces = request, tls, in_pieces
        self.received = b""
        self.port = 0

    def settings(self, sslmode: str, ca: Path | None = None) -> Settings:
        """Return the settings of a client of this server."""
        return Settings(
            host="127.0.0.1",
            port=self.port,
            password=PASSWORD,
            connect_timeout=1,
            sslmode=sslmode,
            sslrootcert=ca,
        )

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            size, code = struct.unpack("!ii", await reader.readexactly(8))
            if code == SSL_REQUEST and self._tls is not None:
                writer.write(b"S")
                await writer.start_tls(self._tls)
                size, _ = struct.unpack("!ii", await reader.readexactly(8))
            await reader.readexactly(size - 8)
            if self._request.startswith(SASL):
                writer.write(SASL)
                self.received = await reader.read(1000)
            request = self._request.removeprefix(SASL)
            for part in [request[:3], request[3:]] if self._in_pieces else [request]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
            self.received += await reader.read(1000)
        writer.close()


@asynccontextmanager
async def insecure_server(
    request: bytes, tls: ssl.SSLContext | None = None, in_pieces: bool = False
) -> AsyncIterator[InsecureServer]:
    server = InsecureServer(request, tls, in_pieces)
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


async def failure_of(settings: Settings) -> tuple[str, str]:
    """Return the cause and the hint of a failed connection attempt."""
    async with handler_engine(settings) as engine:
        with pytest.raises(Exception) as error_info:  # noqa: PT011  # any exception is classified
            async with engine.connect():
                pass
    failure = classify(error_info.value)
    return failure.cause, failure.hint


@pytest.mark.parametrize("in_pieces", [False, True], ids=["at once", "in pieces"])
@pytest.mark.parametrize("mode", ["disable", "prefer", "verify-full"])
@pytest.mark.parametrize("kind", PASSWORD_REQUESTS)
async def test_a_server_that_requests_the_password_without_scram_does_not_receive_it(
    server_tls: ssl.SSLContext, tmp_path: Path, kind: str, mode: str, in_pieces: bool
) -> None:
    tls = None if mode == "disable" else server_tls
    async with insecure_server(PASSWORD_REQUESTS[kind], tls, in_pieces) as server:
        ca = tmp_path / "ca.pem" if mode == "verify-full" else None
        cause, hint = await failure_of(server.settings(mode, ca))
    assert cause == "the server asked for the password without SCRAM"
    assert "scram-sha-256" in hint
    assert server.received == b""


@pytest.mark.parametrize("kind", PASSWORD_REQUESTS, ids=lambda kind: kind.replace(" ", "_"))
async def test_a_server_that_switches_from_scram_to_a_weaker_method_gets_no_password(
    kind: str,
) -> None:
    async with insecure_server(SASL + PASSWORD_REQUESTS[kind]) as server:
        cause, _ = await failure_of(server.settings("disable"))
    assert cause == "the server asked for the password without SCRAM"
    assert b"SCRAM-SHA-256" in server.received
    assert server.received.count(b"p\0\0\0") == 1


async def test_a_server_without_tls_1_3_is_rejected(
    server_tls: ssl.SSLContext, tmp_path: Path
) -> None:
    server_tls.maximum_version = ssl.TLSVersion.TLSv1_2
    async with insecure_server(PASSWORD_REQUESTS["in clear text"], server_tls) as server:
        for mode in ("require", "verify-ca", "verify-full"):
            settings = server.settings(mode, tmp_path / "ca.pem")
            cause, _ = await failure_of(settings)
            # asyncio's server closes the connection, often before it has sent the TLS alert.
            assert re.match("TLS with the server failed|the database cannot be reached", cause)
            context = tls_context(settings)
            assert isinstance(context, ssl.SSLContext)
            assert context.minimum_version is ssl.TLSVersion.TLSv1_3
    assert server.received == b""


async def test_an_iam_token_may_be_sent_in_clear_text_and_over_tls_1_2(
    stack: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RDS Proxy requests the token in clear text, which only DB_AUTH=iam allows."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    async with RdsProxy(stack, tmp_path, lambda token: "Signature" in token) as proxy:
        proxy._tls.maximum_version = ssl.TLSVersion.TLSv1_2
        settings = stack.settings(
            host=proxy.host,
            port=proxy.port,
            auth="iam",
            sslmode="verify-full",
            sslrootcert=proxy.ca,
        )
        async with handler_engine(settings) as engine, engine.connect():
            assert proxy.logins == 1
