"""Connects to the server: tries each address of a host, and sends no password in clear text."""

from __future__ import annotations

import asyncio
import re
import socket
from typing import Any

from aiohappyeyeballs import start_connection

#: How long to wait for one address of a host before also trying the next, in seconds (RFC 8305).
#: asyncpg alone would wait for all of DB_CONNECT_TIMEOUT.
NEXT_ADDRESS_DELAY = 0.25


class ConnectingLoop:
    """A wrapper around the running event loop, for asyncpg to connect with.

    It tries the next address of a host if one does not respond quickly and, unless `scram` is
    False, sends only password messages that belong to SCRAM.
    """

    def __init__(self, scram: bool) -> None:
        self._loop, self._scram = asyncio.get_running_loop(), scram
        #: Whether a server asked for the password in clear text or with MD5.
        self.withheld_password = False
        self._transport: asyncio.WriteTransport | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    async def create_connection(self, factory: Any, host: str, port: int) -> Any:
        tcp, numeric = socket.SOCK_STREAM, socket.AI_NUMERICHOST
        try:
            addresses = socket.getaddrinfo(host, port, type=tcp, flags=numeric)
        except socket.gaierror:  # a name, resolved on a thread
            addresses = await self._loop.getaddrinfo(host, port, type=tcp)
        # asyncio's happy_eyeballs_delay leaks a socket if it is cancelled.
        connected = await start_connection(addresses, happy_eyeballs_delay=NEXT_ADDRESS_DELAY)
        self._transport, protocol = await self._loop.create_connection(factory, sock=connected)
        self._guard(self._transport)
        return self._transport, protocol

    async def create_unix_connection(self, *args: Any) -> Any:
        self._transport, protocol = await self._loop.create_unix_connection(*args)
        self._guard(self._transport)
        return self._transport, protocol

    def abort(self) -> None:
        """Disconnect at once after a failed handshake. asyncpg's close would wait up to 30 s for
        the TLS shutdown if packets are lost."""
        if self._transport is not None:
            self._transport.abort()

    async def start_tls(self, transport: Any, *args: Any, **options: Any) -> Any:
        vars(transport).pop("write", None)
        encrypted = await self._loop.start_tls(transport, *args, **options)
        self._guard(encrypted)
        return encrypted

    def _guard(self, transport: Any) -> None:
        """Refuse to send a password message (`p`) that is not part of SCRAM, even after SCRAM has
        begun: a server may ask for the password in clear text until it accepts the login."""
        if not self._scram or transport is None:
            return
        send, expected = transport.write, iter((rb"SCRAM-SHA-256\0", rb"c=[^,]*,r=[^,]+,p="))

        def write(data: bytes) -> None:
            if data[:1] == b"p" and not re.match(next(expected, rb"(?!)"), bytes(data[5:])):
                self.withheld_password = True
                transport.abort()
            else:
                send(data)

        transport.write = write
