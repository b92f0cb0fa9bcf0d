"""A server process of the laboratory: started, waited for, stopped, and never as root.

Owns what Postgres and PgBouncer have in common. Leaves what each is told to its own module.
"""

import os
import re
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from infra.local import LabError
from infra.local.interruption import held_back

GRAVE = re.compile("FATAL|PANIC|ERROR|WARNING|could not|valid range")


@dataclass(frozen=True)
class Account:
    """Whom servers run as. Postgres and PgBouncer refuse root."""

    uid: int
    gid: int

    @property
    def popen(self) -> dict[str, object]:
        if os.getuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def own(self, path: Path, mode: int = 0o600) -> None:
        """Make `path` this account's and nobody else's."""
        path.chmod(mode)
        if os.getuid() == 0:
            os.chown(path, self.uid, self.gid)

    def write(self, path: Path, text: str) -> Path:
        """A file that only this account (and root) can read, from its first byte on."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
        self.own(path)
        return path


def account() -> Account:
    """Ourselves; for root, `nobody`, which every Unix has and initdb can find a name for."""
    if os.getuid() == 0:
        import pwd

        nobody = pwd.getpwnam("nobody")
        return Account(nobody.pw_uid, nobody.pw_gid)
    return Account(os.getuid(), os.getgid())


def free_port() -> int:
    """A loopback port that nothing listens on now. Another process may take it in between."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Whether `condition` came true within `seconds`."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


class Server(ABC):
    """A child process that listens on a loopback port and writes a log."""

    name = "server"
    host = "127.0.0.1"
    start_seconds = 30.0
    stop_seconds = 10.0

    def __init__(self, folder: Path, account: Account) -> None:
        self.folder = folder
        self.account = account
        self.log = folder / f"{self.name}.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """What to run; called anew at each start, after `port` is known."""

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    @property
    def stop_signal(self) -> signal.Signals:
        return signal.SIGTERM

    def start(self) -> None:
        """Start on the port of last time, or on a free one. Raises LabError with the log's word."""
        for attempt in range(3):
            keep_port = self.port != 0
            self.port = self.port or free_port()
            self._spawn()
            wait_until(lambda: not self.alive or self.is_ready(), self.start_seconds)
            if self.alive and self.is_ready():
                return
            self.stop()
            if keep_port or attempt == 2 or "in use" not in self.said():
                break
            self.port = 0  # somebody took it in between
        raise LabError(f"{self.name} did not start: {self.complaint()}")

    def _spawn(self) -> None:
        if not self.log.exists():
            self.account.write(self.log, "")
        self.start_of_log = self.log.stat().st_size
        with held_back(), self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for us, who then stop it in order
                **self.account.popen,  # type: ignore[call-overload]  # user, group: see Account
            )
            # By which a later run finds it, should this one be killed. The time of its creation
            # tells it from another process that the system gave the same number.
            created = psutil.Process(self.process.pid).create_time()
            record = self.folder / f"{self.name}.process"
            self.account.write(record, f"{self.process.pid} {created!r}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """End it, gently for `stop_seconds`, then not. Nothing to do when it is not running."""
        if self.process is None:
            return
        with held_back():
            if self.alive:
                self.process.send_signal(self.stop_signal)
                try:
                    self.process.wait(self.stop_seconds)
                except subprocess.TimeoutExpired:
                    self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """Its log since the last start."""
        with self.log.open("rb") as log:
            log.seek(self.start_of_log)
            return log.read().decode(errors="replace")

    def complaint(self) -> str:
        """The line of its log that says why it does not run."""
        lines = [line for line in self.said().splitlines() if line.strip()]
        grave = [line for line in lines if GRAVE.search(line)]
        line = (grave or lines or ["it said nothing"])[0]
        return re.sub(r"^[\d-]+ [\d:.]+ \w+ \[\d+\]\s*", "", line)
