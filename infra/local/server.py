"""Server processes that never run as root: what Postgres and PgBouncer have in common."""

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
from infra.local.signals import deferred_signals

ERROR_LINE = re.compile("FATAL|PANIC|ERROR|WARNING|could not|valid range")


@dataclass(frozen=True)
class Account:
    """The account that servers run as, because Postgres and PgBouncer refuse to run as root."""

    uid: int
    gid: int

    @property
    def popen_options(self) -> dict[str, object]:
        if os.getuid() != 0:
            return {}
        return {"user": self.uid, "group": self.gid, "extra_groups": []}

    def take_ownership(self, path: Path, mode: int = 0o600) -> None:
        """Make this account the only one with access to `path`. Raises OSError for a link."""
        # By descriptor, because another file could get this name in the meantime.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            os.fchmod(descriptor, mode)
            if os.getuid() == 0:
                os.fchown(descriptor, self.uid, self.gid)
        finally:
            os.close(descriptor)

    def write(self, path: Path, text: str, mode: int = 0o600) -> Path:
        """Create a file that only this account and root can ever read."""
        path.unlink(missing_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            if os.getuid() == 0:
                os.fchown(file.fileno(), self.uid, self.gid)
            os.fchmod(file.fileno(), mode)
            file.write(text)
        return path

    def let_in(self, path: Path) -> None:
        """Let this account enter the folder `path` without listing or changing it."""
        if os.getuid() == 0:
            path.chmod(0o711)


def account() -> Account:
    """Return the current account or, for root, `nobody`; initdb needs an account with a name."""
    if os.getuid() == 0:
        import pwd

        nobody = pwd.getpwnam("nobody")
        return Account(nobody.pw_uid, nobody.pw_gid)
    return Account(os.getuid(), os.getgid())


def free_port() -> int:
    """Return a free loopback port. Another process may take it before it is used."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], bool], seconds: float) -> bool:
    """Return whether `condition` became true within `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class Server(ABC):
    """A child process that listens on a loopback port and writes a log."""

    name = "server"
    host = "127.0.0.1"
    start_seconds = 30.0
    stop_seconds = 10.0
    stop_signal = signal.SIGTERM

    def __init__(self, folder: Path, account: Account) -> None:
        self.folder = folder
        self.account = account
        self.log = folder / f"{self.name}.log"
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None

    @abstractmethod
    def command(self) -> list[str]:
        """Return the command; called for each start, after `port` is set."""

    def environment(self) -> dict[str, str]:
        return {}

    @abstractmethod
    def is_ready(self) -> bool:
        """Return whether it accepts connections."""

    def start(self) -> None:
        """Start on the previous or a free port. Raises LabError with the error in the log."""
        for attempt in range(3):
            keep_port = self.port != 0
            self.port = self.port or free_port()
            self._spawn()
            wait_until(lambda: not self.alive or self.is_ready(), self.start_seconds)
            if self.alive and self.is_ready():
                return
            self.stop()
            if keep_port or attempt == 2 or "in use" not in self.log_since_start():
                break
            self.port = 0  # another process took it
        raise LabError(f"{self.name} did not start: {self.first_error()}")

    def _spawn(self) -> None:
        # We own the log and pass it open, so that the server cannot replace it.
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
        with deferred_signals(), os.fdopen(os.open(self.log, flags, 0o600), "ab") as log:
            self.log_offset = os.fstat(log.fileno()).st_size
            self.process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                env={"PATH": os.defpath, "LC_ALL": "C", **self.environment()},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # so that Ctrl-C does not reach the server
                **self.account.popen_options,  # type: ignore[call-overload]  # user, group: see Account
            )
            # A later run finds the process by this record if this run is killed. The creation time
            # distinguishes it from a later process with the same id.
            created = psutil.Process(self.process.pid).create_time()
            record = self.folder / f"{self.name}.process"
            self.account.write(record, f"{self.process.pid} {created!r}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def stop(self) -> None:
        """Stop the server, with SIGKILL if it still runs after `stop_seconds`."""
        if self.process is None:
            return
        with deferred_signals():
            if self.alive:
                self.process.send_signal(self.stop_signal)
                try:
                    self.process.wait(self.stop_seconds)
                except subprocess.TimeoutExpired:
                    self.process.kill()
            self.process.wait()

    def log_since_start(self) -> str:
        """Return the log since the latest start."""
        with self.log.open("rb") as log:
            log.seek(self.log_offset)
            return log.read().decode(errors="replace")

    def first_error(self) -> str:
        """Return the first error in the log since the latest start, or else its first line."""
        lines = [line for line in self.log_since_start().splitlines() if line.strip()]
        errors = [line for line in lines if ERROR_LINE.search(line)]
        line = (errors or lines or ["no output"])[0]
        return re.sub(r"^[\d-]+ [\d:.]+ \w+ \[\d+\]\s*", "", line)
