"""A test double of RDS Proxy in front of Postgres, as its documentation describes it.

It accepts TLS only, a cleartext password within TLS, no `options`, few startup parameters and no
quoted values. It forwards everything else and records which statements would pin a client, and why.
It does not multiplex. Whether an unnamed Parse pins is unclear: older reports say so, but AWS
announced the opposite in 2023, and here it does not. Sources: "Avoiding pinning an RDS Proxy",
Amazon RDS User Guide; MagicStack/asyncpg#952 for quoted values.
"""

import asyncio
import contextlib
import re
import ssl
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Self

import trustme
from scramp import ScramClient

from infra.database.roles import APP
from infra.local.stack import DATABASE, Stack

SSL_REQUEST, CANCEL_REQUEST, PROTOCOL = 80877103, 80877102, 3 << 16
SUPPORTED_PARAMETERS = {
    "user",
    "database",
    "client_encoding",
    "application_name",
    "DateStyle",
    "TimeZone",
}

#: "Conditions that cause pinning for RDS for PostgreSQL".
PINNING = re.compile(
    r"(^|;)\s*(SET|RESET|DISCARD|DEALLOCATE|PREPARE|EXECUTE|LISTEN|UNLISTEN|LOAD|DECLARE)\b"
    r"|\bset_config\b|\b(nextval|setval|currval|lastval)\b|\bpg_(try_)?advisory_lock"
    r"|\bCREATE\s+(OR\s+REPLACE\s+)?(LOCAL\s+|GLOBAL\s+)?TEMP",
    re.IGNORECASE,
)


class RdsProxy:
    """A server for the duration of a block. `accepts_password` returns whether one is valid."""

    host = "127.0.0.1"

    def __init__(self, stack: Stack, folder: Path, accepts_password: Callable[[str], bool]) -> None:
        self._postgres = stack.postgres
        self._password = stack.settings().password.get_secret_value()
        self._accepts_password = accepts_password
        ca = trustme.CA()
        self.ca = folder / "ca.pem"
        ca.cert_pem.write_to_path(str(self.ca))
        self._tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        ca.issue_cert(self.host).configure_cert(self._tls)
        self.port = 0
        #: The name and text of every prepared statement.
        self.statements: list[tuple[str, str]] = []
        self.logins = 0
        #: The reason for pinning each pinned client, by login number.
        self.pins: dict[int, str] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self.host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, client: asyncio.StreamReader, out: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            if rejection := await self._serve(client, out):
                error_fields = b"SFATAL\0C28000\0M" + rejection.encode() + b"\0\0"
                out.write(b"E" + struct.pack("!i", len(error_fields) + 4) + error_fields)
                await out.drain()
        self._tasks.discard(task)
        out.close()

    async def _serve(self, client: asyncio.StreamReader, out: asyncio.StreamWriter) -> str | None:
        """Forward until the client disconnects. Return the reason if the client is rejected."""
        _, code = struct.unpack("!ii", await client.readexactly(8))
        if code == CANCEL_REQUEST:
            return None  # RDS Proxy does not support it
        if code != SSL_REQUEST:
            return "This RDS Proxy requires TLS connections"
        out.write(b"S")
        await out.start_tls(self._tls)
        size, code = struct.unpack("!ii", await client.readexactly(8))
        fields = (await client.readexactly(size - 8)).decode().split("\0")
        parameters = dict(zip(fields[:-2:2], fields[1:-2:2], strict=True))
        if code != PROTOCOL:
            return "Unsupported protocol"
        if "options" in parameters:
            return "Feature not supported: RDS Proxy currently doesn't support command-line options"
        if unknown := parameters.keys() - SUPPORTED_PARAMETERS:
            return f"Unknown startup parameters: {sorted(unknown)}"
        if "'" in parameters["client_encoding"]:
            return f"Unsupported client_encoding: {parameters['client_encoding']}"
        if (parameters["user"], parameters["database"]) != (APP, DATABASE):
            return "no credentials for that role"
        out.write(b"R" + struct.pack("!ii", 8, 3))  # AuthenticationCleartextPassword
        _, body = await message(client)
        if not self._accepts_password(body.rstrip(b"\0").decode()):
            return f"IAM authentication failed for the role {APP}"
        self.logins += 1
        client_number = self.logins
        server, to_server = await asyncio.open_connection(self._postgres.host, self._postgres.port)
        try:
            await self._log_in(server, to_server, parameters)
            out.write(b"R" + struct.pack("!ii", 8, 0))  # AuthenticationOk
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward_responses(server, out))
                await self._forward_requests(client, to_server, client_number)
        finally:
            to_server.close()
        return None

    async def _log_in(
        self, server: asyncio.StreamReader, out: asyncio.StreamWriter, parameters: dict[str, str]
    ) -> None:
        fields = "".join(f"{name}\0{value}\0" for name, value in parameters.items()).encode()
        out.write(struct.pack("!ii", len(fields) + 9, PROTOCOL) + fields + b"\0")
        scram = ScramClient(["SCRAM-SHA-256"], APP, self._password)
        await message(server)
        first = scram.get_client_first().encode()
        out.write(frame(b"p", b"SCRAM-SHA-256\0" + struct.pack("!i", len(first)) + first))
        scram.set_server_first((await message(server))[1][4:].decode())
        out.write(frame(b"p", scram.get_client_final().encode()))
        scram.set_server_final((await message(server))[1][4:].decode())
        await message(server)  # AuthenticationOk

    async def _forward_responses(
        self, server: asyncio.StreamReader, out: asyncio.StreamWriter
    ) -> None:
        while data := await server.read(65536):
            out.write(data)
            await out.drain()

    async def _forward_requests(
        self, client: asyncio.StreamReader, out: asyncio.StreamWriter, client_number: int
    ) -> None:
        while True:
            kind, body = await message(client)
            if kind in b"QP":
                fields = body.decode().split("\0")
                name, statement = ("", fields[0]) if kind == b"Q" else (fields[0], fields[1])
                self.statements.append((name, statement))
                if name or PINNING.search(statement):
                    self.pins.setdefault(client_number, f"PREPARE {name}" if name else statement)
            out.write(frame(kind, body))
            await out.drain()
            if kind == b"X":
                return


async def message(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Read a message and return its type and body."""
    kind, size = struct.unpack("!ci", await reader.readexactly(5))
    return kind, await reader.readexactly(size - 4)


def frame(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("!i", len(body) + 4) + body
