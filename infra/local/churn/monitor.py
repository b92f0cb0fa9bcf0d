"""Samples the connections of Postgres and PgBouncer ten times a second, on a thread.

Its own connections are opened before the run, because later there may be none free.
"""

import threading
import time

from infra.local.churn.plan import ConnectionPath
from infra.local.compose import RunningStack

INTERVAL_S = 0.1

BACKENDS = "SELECT client_port, host(client_addr) FROM pg_stat_activity WHERE usename = %s"
TERMINATE_BACKENDS = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = %s AND host(client_addr) = %s
"""


class Monitor:
    """Samples backends and clients of the application, by seconds since the start.

    Through PgBouncer, clients are the sandboxes' connections and backends PgBouncer's server
    connections; without it, both are the same.
    """

    def __init__(self, stack: RunningStack, path: ConnectionPath) -> None:
        self._postgres = stack.postgres.administrator()
        self._app = stack.service.app
        #: The address of this connection, and so of the sandboxes' connections.
        self._address = self._fetch_value("SELECT host(inet_client_addr())")
        self.versions = {
            "postgres": self._fetch_value("SHOW server_version").split()[0],
            "pgbouncer": stack.pgbouncer.show("VERSION")[0]["version"].split()[-1],
        }
        self._console = stack.pgbouncer.console() if path is ConnectionPath.PGBOUNCER else None
        self.started = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []
        #: When a sandbox ended, by the ports of its connections that are still open. A port that is
        #: used again later belongs to another connection.
        self._ended_at: dict[int, float] = {}
        self._last_ending_at: float | None = None
        #: When all connections of ended sandboxes were closed; None while some are open.
        self._released_at: float | None = None
        #: Backends and clients of ended sandboxes in the latest sample.
        self.held_by_ended = (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="churn-monitor", daemon=True)

    def __enter__(self) -> "Monitor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._postgres.close()
        if self._console is not None:
            self._console.close()

    def _fetch_value(self, query: str) -> str:
        [[value]] = self._postgres.execute(query).fetchall()
        return str(value)

    def terminate_backends(self) -> None:
        """Terminate the backends of this run."""
        self._postgres.execute(TERMINATE_BACKENDS, [self._app, self._address])

    @property
    def now(self) -> float:
        return time.monotonic() - self.started

    def record_ending(self, ports: list[int]) -> None:
        """Record that a sandbox with connections from these ports has ended."""
        self._released_at = None
        self._last_ending_at = self.now
        self._ended_at |= dict.fromkeys(ports, self._last_ending_at)

    @property
    def release_s(self) -> float | None:
        """The seconds from the last ending until all connections of ended sandboxes were closed, or
        None if some are open. The resolution is INTERVAL_S."""
        if self._released_at is None or self._last_ending_at is None:
            return None
        return max(0.0, self._released_at - self._last_ending_at)

    def _poll(self) -> None:
        while not self._stop.is_set():
            now = self.now
            self._sample(now)
            self._stop.wait(max(0.0, INTERVAL_S - (self.now - now)))

    def _sample(self, now: float) -> None:
        connections = self._postgres.execute(BACKENDS, [self._app]).fetchall()
        backends = len(connections)
        ports = [port for port, address in connections if address == self._address]
        linked = set(ports)
        if self._console is None:
            backends = len(ports)
        else:
            rows = self._console.execute("SHOW CLIENTS").fetchall()
            clients = [
                row for row in rows if (row["user"], row["addr"]) == (self._app, self._address)
            ]
            ports = [row["port"] for row in clients]
            linked = {row["port"] for row in clients if row["link"]}
        self.samples.append((round(now, 2), backends, len(ports)))
        for port, ended_at in list(self._ended_at.items()):
            if port not in ports and ended_at < now:
                del self._ended_at[port]
        held = self._ended_at.keys() & set(ports)
        self.held_by_ended = (len(held & linked), len(held))
        last = self._last_ending_at
        if self._released_at is None and not held and last is not None and now > last:
            self._released_at = now
