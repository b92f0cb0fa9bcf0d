"""A name server of the laboratory's own: one name, which can come to mean another address.

Owns that name, who answers for it and who is asked. Needs a network of one's own, where port 53 is
free and anybody's: PgBouncer 1.18 asks no other.
"""

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

from dnslib import RR, A, DNSRecord
from dnslib.server import BaseResolver, DNSHandler, DNSLogger, DNSServer

from infra.local import network

NAME = "server.laboratory"
_RESOLV_CONF, _MS_BIND, _MNT_DETACH = b"/etc/resolv.conf", 4096, 2


class Names(BaseResolver):  # type: ignore[misc]  # has no types
    """`with Names() as names:`. `address`: what `NAME` means. `silent`: whether questions are lost.
    `asked`: how many came."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"
        self.silent = False
        self.asked = 0
        names = self

        class Handler(DNSHandler):  # type: ignore[misc]  # has no types
            def handle(self) -> None:
                names.asked += 1
                if not names.silent:
                    super().handle()

        # Port 53 it is, so an address for each process: several run side by side.
        number = os.getpid()
        self.host = f"127.{53 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"
        quiet = DNSLogger("-request,-reply")
        self._server = DNSServer(self, self.host, 53, logger=quiet, handler=Handler)

    def resolve(self, request: DNSRecord, handler: Any) -> DNSRecord:
        reply = request.reply()
        if str(request.q.qname).rstrip(".") == NAME and request.q.qtype == 1:
            reply.add_answer(RR(request.q.qname, rdata=A(self.address), ttl=1))
        return reply

    def __enter__(self) -> Self:
        self._server.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._server.server.server_close()


@contextlib.contextmanager
def resolving_by(resolv_conf: Path) -> Iterator[None]:
    """For the time of the block that file says whom programs ask. In mounts of one's own."""
    assert network.is_own(), "the whole machine would ask there"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(bytes(resolv_conf), _RESOLV_CONF, None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), "no file can be mounted")
    try:
        yield
    finally:
        libc.umount2(_RESOLV_CONF, _MNT_DETACH)
