"""The TCP connections of a sandbox, and the packets dropped while it is frozen."""

import contextlib
from pathlib import Path

import psutil

from infra.local import LabError
from infra.local.network import Filter, Ports


class Connections:
    """Connections of the process `pid`, except those to the Runtime API on `api_port`.

    Without a `packet_filter` no packets are dropped.
    """

    def __init__(self, pid: int, api_port: int, packet_filter: Filter | None) -> None:
        self._pid = pid
        self._api_port = api_port
        self._filter = packet_filter
        self._sockets: set[str] = set()
        self._ports: list[Ports] = []
        self._dropped: list[Ports] = []

    def ports(self) -> list[Ports]:
        """Return the ports of all connections.

        Listing connections takes milliseconds, so it is only done after the sockets changed.
        """
        with contextlib.suppress(psutil.NoSuchProcess, OSError):
            links = [link.readlink().name for link in Path(f"/proc/{self._pid}/fd").iterdir()]
            sockets = {link for link in links if link.startswith("socket:")}
            if sockets != self._sockets:
                self._ports = [
                    (connection.laddr.port, connection.raddr.port)
                    for connection in psutil.Process(self._pid).net_connections("tcp")
                    if connection.raddr and connection.raddr.port != self._api_port
                ]
                self._sockets = sockets
            return self._ports
        return []

    def drop_packets(self) -> None:
        """Drop all packets until `restore_packets`, as while a micro-VM is paused."""
        if self._filter is not None:
            self._dropped = self.ports()
            self._filter.drop(self._dropped)

    def restore_packets(self) -> None:
        if self._filter is not None:
            self._filter.restore(self._dropped)
        self._dropped = []

    def drop_packets_for_good(self) -> None:
        """Drop all packets, as when a micro-VM is removed. Raises LabError without a filter."""
        if self._filter is None:
            raise LabError("a sandbox can only vanish where packets can be dropped")
        self._filter.drop(set(self.ports()) - set(self._dropped))
