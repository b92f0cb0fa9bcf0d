"""A network namespace in which packets can be dropped, for root and other users. Linux only.

The namespace, its packet filter and its mounts exist until the last process in it exits.
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

#: The client's and the server's port of a connection.
Ports = tuple[int, int]

#: The variable with the id of the lab's namespace; `container` in a container of the lab.
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


def is_isolated() -> bool:
    """Return whether this process is in a network namespace of the lab."""
    return os.environ.get(INSIDE) in ("container", _namespace_id())


def _namespace_id() -> str:
    try:
        return str(Path("/proc/self/ns/net").readlink())
    except OSError:
        return "not Linux"


def isolated_command(words: Sequence[str]) -> list[str]:
    """Return the command that runs `words` in a new network namespace."""
    # A user namespace allows other users to create a network namespace. It maps the current user,
    # because Postgres refuses to run as root. For root it would hide the other accounts.
    user = [] if os.getuid() == 0 else ["--map-current-user", "--keep-caps"]
    preparation = [sys.executable, "-m", "infra.local.network"]
    return ["unshare", *user, "--net", "--mount", *preparation, *words]


def enter_namespace(module: str, *words: str) -> str | None:
    """Replace this process by `python -m module …` in a network namespace, unless it is in one.

    Return the reason if this is not possible.
    """
    if is_isolated():
        return None
    if (reason := unavailable_reason()) is None:
        command = isolated_command([sys.executable, "-m", module, *words])
        os.execvp(command[0], command)  # noqa: S606  # becomes the command
    return reason


def unavailable_reason() -> str | None:
    """Return why namespaces or filters are not available here, or None if they are."""
    if shutil.which("unshare") is None:
        return "`unshare` is not installed (Linux, package util-linux)"
    probe = subprocess.run(
        isolated_command(
            [sys.executable, "-c", "from infra.local.network import Filter; Filter()"]
        ),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    return None if probe.returncode == 0 else (probe.stderr.splitlines() or ["no output"])[-1]


class Filter:
    """Drops packets of TCP connections, identified by both ports, in both directions.

    Raises LabError without nftables or outside of a network namespace of the lab.
    """

    def __init__(self) -> None:
        try:
            self._nft = ctypes.CDLL("libnftables.so.1")
        except OSError:
            raise LabError("nftables is not installed (package nftables)") from None
        self._nft.nft_ctx_new.restype = ctypes.c_void_p
        self._nft.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._nft.nft_ctx_new(0))
        self._nft.nft_ctx_buffer_error(self._context)
        if not is_isolated():
            raise LabError("packets can only be dropped in a network namespace of the lab")
        self._run(RULES)

    def drop(self, connections: Iterable[Ports]) -> None:
        self._change("add", connections)

    def restore(self, connections: Iterable[Ports]) -> None:
        self._change("delete", connections)

    def drop_percent(self, percent: int, port: int) -> None:
        """Drop a random share of the packets from and to a port; 0 drops none."""
        chain = f"inet laboratory losing_{port}"  # one chain per port
        self._run(f"add chain {chain} {{ type filter hook input priority 1; }}")
        self._run(f"flush chain {chain}")
        condition = f"numgen random mod 100 < {percent}" if percent < 100 else ""
        for direction in ("sport", "dport") if percent else ():
            self._run(f"add rule {chain} tcp {direction} {port} {condition} drop")

    def _change(self, verb: str, connections: Iterable[Ports]) -> None:
        if elements := ", ".join(f"{a} . {b}, {b} . {a}" for a, b in connections):
            self._run(f"{verb} element inet laboratory silent {{ {elements} }}")

    def _run(self, commands: str) -> None:
        if self._nft.nft_run_cmd_from_buffer(self._context, commands.encode()):
            output = self._nft.nft_ctx_get_error_buffer(self._context).decode().splitlines()
            raise LabError(f"nftables: {(output or ['no output'])[0]}")


def _raise_loopback() -> None:
    with socket.socket() as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", _IFF_UP | _IFF_RUNNING))


def main() -> None:
    """Prepare the new namespace and become the command; called through `isolated_command`."""
    _raise_loopback()
    os.environ[INSIDE] = _namespace_id()
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # becomes the command


if __name__ == "__main__":
    main()
