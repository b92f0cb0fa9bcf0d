"""A name server for one name whose address can change.

Needs a network namespace, where port 53 is free: PgBouncer 1.18 supports no other port.
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

SERVER_NAME = "server.laboratory"
_RESOLV_CONF, _MS_BIND, _MNT_DETACH = b"/etc/resolv.conf", 4096, 2


class NameServer(BaseResolver):  # type: ignore[misc]  # no type hints
    """Answer every query with `address`, or drop it while `silent`. `queries` counts them."""

    def __init__(self) -> None:
        self.address = "127.0.0.1"
        self.silent = False
        self.queries = 0
        name_server = self

        class Handler(DNSHandler):  # type: ignore[misc]  # no type hints
            def handle(self) -> None:
                name_server.queries += 1
                if not name_server.silent:
                    super().handle()

        # The port is fixed, so each process uses its own address.
        pid = os.getpid()
        self.host = f"127.{53 + (pid >> 16)}.{pid >> 8 & 255}.{pid & 255}"
        logger = DNSLogger("-request,-reply")
        self._server = DNSServer(self, self.host, 53, logger=logger, handler=Handler)

    def resolve(self, request: DNSRecord, handler: Any) -> DNSRecord:
        reply = request.reply()
        if str(request.q.qname).rstrip(".") == SERVER_NAME and request.q.qtype == 1:
            reply.add_answer(RR(request.q.qname, rdata=A(self.address), ttl=1))
        return reply

    def __enter__(self) -> Self:
        self._server.start_thread()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.stop()
        self._server.server.server_close()


@contextlib.contextmanager
def using_resolv_conf(resolv_conf: Path) -> Iterator[None]:
    """Mount the file over /etc/resolv.conf during the block. Needs a mount namespace."""
    assert network.is_isolated(), "the whole machine would use this name server"
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(bytes(resolv_conf), _RESOLV_CONF, None, _MS_BIND, None):
        raise OSError(ctypes.get_errno(), "no file can be mounted")
    try:
        yield
    finally:
        libc.umount2(_RESOLV_CONF, _MNT_DETACH)
