"""What Postgres and PgBouncer hold while a fleet churns, seen from outside.

Owns a thread with a connection to each, opened before anything happens, that looks ten times a
second. Leaves what it means to `report`.
"""

import threading
import time

from infra.database.roles import APP
from infra.local import compose
from infra.local.churn.plan import Path
from infra.local.stack import Stack

INTERVAL = 0.1

BACKENDS = "SELECT client_port, host(client_addr) FROM pg_stat_activity WHERE usename = %s"
CLEAR = """
SELECT pg_terminate_backend(pid) FROM pg_stat_activity
WHERE usename = %s AND host(client_addr) = %s
"""


class Watch:
    """`samples`: seconds since the start, backends and clients of the application. Behind PgBouncer
    its clients are sandboxes' connections and its backends PgBouncer's; directly, both are one."""

    def __init__(self, stack: Stack | compose.Stack, path: Path) -> None:
        self._postgres = stack.postgres.administrator()
        #: Where sandboxes' connections come from, as this one does; others are not of this run.
        self._address = self._ask("SELECT host(inet_client_addr())")
        self.versions = {
            "postgres": self._ask("SHOW server_version").split()[0],
            "pgbouncer": stack.pgbouncer.show("VERSION")[0]["version"].split()[-1],
        }
        self._console = stack.pgbouncer.console() if path is Path.PGBOUNCER else None
        self.begun = time.monotonic()
        self.samples: list[tuple[float, int, int]] = []
        #: Ports of connections that ended sandboxes had and that are still there, and when they
        #: ended: once a port was not there, whoever has it next is another.
        self._ended: dict[int, float] = {}
        self._last_ending: float | None = None
        #: When none of them was left, since the last ending; None while some are.
        self._released: float | None = None
        #: Backends and clients of ended sandboxes, at the last look.
        self.held = (0, 0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_on, name="watch", daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._postgres.close()
        if self._console is not None:
            self._console.close()

    def _ask(self, query: str) -> str:
        [[answer]] = self._postgres.execute(query).fetchall()
        return str(answer)

    def clear(self) -> None:
        """Free what the run's sandboxes still hold of Postgres, for whoever comes next."""
        with self._postgres.cursor() as cursor:
            cursor.execute(CLEAR, [APP, self._address])

    @property
    def now(self) -> float:
        return time.monotonic() - self.begun

    def ended(self, ports: list[int]) -> None:
        """A sandbox that had connections from these ports has ended now."""
        self._released = None
        self._last_ending = self.now
        self._ended |= dict.fromkeys(ports, self._last_ending)

    @property
    def release_seconds(self) -> float | None:
        """From the last ending until nothing of any ended sandbox was left; None while something
        is. No finer than INTERVAL."""
        if self._released is None or self._last_ending is None:
            return None
        return max(0.0, self._released - self._last_ending)

    def _look_on(self) -> None:
        while not self._stop.is_set():
            begun = self.now
            found = self._postgres.execute(BACKENDS, [APP]).fetchall()
            backends = len(found)
            ports = [port for port, address in found if address == self._address]
            linked = set(ports)
            if self._console is None:
                backends = len(ports)
            else:
                rows = self._console.execute("SHOW CLIENTS").fetchall()
                clients = [
                    row for row in rows if (row["user"], row["addr"]) == (APP, self._address)
                ]
                ports = [row["port"] for row in clients]
                linked = {row["port"] for row in clients if row["link"]}
            self.samples.append((round(begun, 2), backends, len(ports)))
            for port, when in list(self._ended.items()):
                if port not in ports and when < begun:
                    del self._ended[port]
            held = self._ended.keys() & set(ports)
            self.held = (len(held & linked), len(held))
            last = self._last_ending
            if self._released is None and not held and last is not None and begun > last:
                self._released = begun
            self._stop.wait(max(0.0, INTERVAL - (self.now - begun)))
