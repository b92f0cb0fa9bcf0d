"""The output of sandboxes, in files of limited size."""

import asyncio
import itertools
import os
from pathlib import Path

#: A function may print without end, so a larger file is emptied.
LIMIT_BYTES = 20 * 2**20


class Logs:
    """Creates log files in `folder`, and empties those above the limit while `trim` runs."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count(1)
        self.was_trimmed = False

    def new_folder(self) -> Path:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        return folder

    def last_line(self) -> str:
        """Return the last line of the newest log, or "" without any output."""
        logs = sorted(self._folder.rglob("*.log"), key=lambda path: path.stat().st_mtime)
        lines = logs[-1].read_text(errors="replace").split("\n") if logs else []
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")

    async def trim(self) -> None:
        """Empty large logs until cancelled."""
        while True:
            await asyncio.sleep(0.5)
            for log in self._folder.rglob("*.log"):
                if log.stat().st_size > LIMIT_BYTES:
                    self.was_trimmed = True
                    os.truncate(log, 0)
