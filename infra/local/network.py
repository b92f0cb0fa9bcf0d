"""A network namespace of one's own, in which packets can be made to vanish.

Owns entering one, as root or not, and the packet filter in it; both are gone with the last process
inside. So are disks that are mounted there: mounts are its own, too. Linux only.
"""

import ctypes
import fcntl
import os
import shutil
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from infra.local import ROOT, LabError

#: The client's and the server's.
Ports = tuple[int, int]

#: In the environment of whatever runs inside: which network it is. Or `container`, for a container
#: that has one anyway.
INSIDE = "WARM_ENGINE_OWN_NETWORK"
RULES = """
table inet laboratory {
  set silent { type inet_service . inet_service; }
  chain arriving {
    type filter hook input priority 0
    tcp sport . tcp dport @silent drop
  }
  chain leaving {
    type filter hook output priority 0
    tcp sport . tcp dport @silent drop
  }
}
"""
_SIOCSIFFLAGS, _IFF_UP, _IFF_RUNNING = 0x8914, 0x1, 0x40


def is_own() -> bool:
    """Whether this process is in a network of the laboratory's own."""
    return os.environ.get(INSIDE) in ("container", _this())


def _this() -> str:
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return "not Linux"


def command(words: Sequence[str]) -> list[str]:
    """What to run instead of `words` to have it run in a network of its own."""
    # Without root, a user namespace gives the right to make the other one. Ourselves in it, not
    # root: Postgres would refuse. For root one would only take away the other accounts.
    user = [] if os.getuid() == 0 else ["--map-current-user", "--keep-caps"]
    return [
        "unshare",
        *user,
        "--net",
        "--mount",
        sys.executable,
        "-m",
        "infra.local.network",
        *words,
    ]


def obstacle() -> str | None:
    """Why there can be no such network or filter on this machine; None if there can."""
    if shutil.which("unshare") is None:
        return "there is no `unshare` here (Linux, package util-linux)"
    probe = subprocess.run(
        command([sys.executable, "-c", "from infra.local.network import Filter; Filter()"]),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return None if probe.returncode == 0 else (probe.stderr.splitlines() or ["it said nothing"])[-1]


class Filter:
    """Drops what belongs to chosen TCP connections, in both directions. A connection is told by its
    two ports, (client's, server's): by one alone it would be confused with others to come.
    Raises LabError where there is no nftables, or no network of one's own."""

    def __init__(self) -> None:
        try:
            self._nft = ctypes.CDLL("libnftables.so.1")
        except OSError:
            raise LabError("nftables is not installed (package nftables)") from None
        self._nft.nft_ctx_new.restype = ctypes.c_void_p
        self._nft.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._nft.nft_ctx_new(0))
        self._nft.nft_ctx_buffer_error(self._context)
        if not is_own():
            raise LabError("packets are only ever dropped in a network of the laboratory's own")
        self._run(RULES)

    def silence(self, connections: Iterable[Ports]) -> None:
        self._change("add", connections)

    def restore(self, connections: Iterable[Ports]) -> None:
        self._change("delete", connections)

    def lose(self, percent: int, port: int) -> None:
        """Drop that share of what comes to and from a port, at random; of 0 percent, no more."""
        chain = f"inet laboratory losing_{port}"  # others may lose those of other ports
        self._run(f"add chain {chain} {{ type filter hook input priority 1; }}")
        self._run(f"flush chain {chain}")
        some = f"numgen random mod 100 < {percent}" if percent < 100 else ""
        for end in ("sport", "dport") if percent else ():
            self._run(f"add rule {chain} tcp {end} {port} {some} drop")

    def _change(self, verb: str, connections: Iterable[Ports]) -> None:
        if listed := ", ".join(f"{a} . {b}, {b} . {a}" for a, b in connections):
            self._run(f"{verb} element inet laboratory silent {{ {listed} }}")

    def _run(self, text: str) -> None:
        if self._nft.nft_run_cmd_from_buffer(self._context, text.encode()):
            said = self._nft.nft_ctx_get_error_buffer(self._context).decode().splitlines()
            raise LabError(f"nftables: {(said or ['it said nothing'])[0]}")


def _raise_loopback() -> None:
    with socket.socket() as sock:
        request = struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, request)


def main() -> None:
    """What `command` runs inside, and nobody else."""
    _raise_loopback()
    os.environ[INSIDE] = _this()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # becomes the command


if __name__ == "__main__":
    main()
