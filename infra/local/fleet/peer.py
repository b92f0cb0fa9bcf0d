"""Rejects connections from other users of this machine.

Any local user can connect to the lab's ports, and the runtime client sends no token. On Linux the
owner of the connecting socket is known.
"""

import os
import socket
import struct
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from aiohttp import web

#: Other systems do not list the owners of sockets: see `infra/local/LAMBDA.md`.
IS_SUPPORTED = sys.platform == "linux"
_TABLE = Path("/proc/net/tcp")


def _hexadecimal(address: tuple[str, int]) -> str:
    """Format an address and a port as in the kernel's table."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"


def owner(peer: tuple[str, int], local: tuple[str, int]) -> int | None:
    """Return the user of the socket at `peer` that is connected to our address `local`.

    Return None if it is closed: the kernel lists closed sockets as root's, with inode 0.
    """
    addresses = [_hexadecimal(peer), _hexadecimal(local)]
    for line in _TABLE.read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == addresses:
            return int(fields[7]) if fields[9] != "0" else None
    return None


def ours_alone() -> Any:
    """Return aiohttp middleware that responds to other users with 403. It checks each connection
    once."""
    is_ours: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()

    @web.middleware
    async def check(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        transport = request.transport
        if IS_SUPPORTED and transport is not None:
            if transport not in is_ours:
                peer = transport.get_extra_info("peername")[:2]
                local = transport.get_extra_info("sockname")[:2]
                is_ours[transport] = owner(peer, local) == os.getuid()
            if not is_ours[transport]:
                return web.json_response({"errorType": "Forbidden"}, status=403)
        return await handler(request)

    return check
