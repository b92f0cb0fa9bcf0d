"""A fork server: forks sandboxes from a process that has imported the usual packages. Linux only.

It starts fleets that are too large for this machine's cores; such cold starts are not
representative. The runtime client and the handler are imported after the fork. The server process
is in `client`; `multiprocessing`'s fork server cannot use another interpreter and folder.
"""

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Self

from infra.local import ROOT
from infra.local.fleet.interpreter import client_command


class ForkedProcess:
    """The part of `asyncio.subprocess.Process` that a sandbox needs."""

    def __init__(self, pid: int, exit_status: "asyncio.Future[int]") -> None:
        self.pid = pid
        self._exit_status = exit_status

    async def wait(self) -> int:
        return await asyncio.shield(self._exit_status)


class ForkServer:
    """A context manager with the folder and the interpreter of the code to run."""

    def __init__(self, *, root: Path = ROOT, python: str = sys.executable) -> None:
        self.root, self.python = root, python

    async def __aenter__(self) -> Self:
        self._process = await asyncio.create_subprocess_exec(
            *client_command(self.python, "fork-server", ""),
            cwd=self.root,
            # As on Lambda, no bytecode is written to the folders of the code and its packages.
            env={"PATH": os.defpath, "LANG": "en_US.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            start_new_session=True,
        )
        self._started_pids: asyncio.Queue[int] = asyncio.Queue()
        self._exit_statuses: dict[int, asyncio.Future[int]] = {}
        requests, reports = self._process.stdin, self._process.stdout
        assert requests is not None and reports is not None  # noqa: S101, PT018  # pipes
        self._requests = requests
        self._reading = asyncio.create_task(self._read_reports(reports))
        self._lock = asyncio.Lock()
        return self

    async def __aexit__(self, *error: object) -> None:
        self._requests.close()
        await self._process.wait()
        await self._reading

    async def fork(
        self, handler: str, environment: dict[str, str], log: Path | None
    ) -> ForkedProcess:
        """Start a sandbox's process. `log`: a file for its output; None discards it."""
        request = {"handler": handler, "environment": environment, "log": log and str(log)}
        async with self._lock:
            self._requests.write(json.dumps(request).encode() + b"\n")
            pid = await self._started_pids.get()
        return ForkedProcess(pid, self._exit_statuses[pid])

    async def _read_reports(self, reports: asyncio.StreamReader) -> None:
        async for line in reports:
            report = json.loads(line)
            if "status" in report:
                self._exit_statuses.pop(report["pid"]).set_result(report["status"])
            else:
                self._exit_statuses[report["pid"]] = asyncio.get_running_loop().create_future()
                self._started_pids.put_nowait(report["pid"])
