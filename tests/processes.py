"""What a command started, and whether it is gone with it."""

import contextlib
import re

import psutil


def folders_of_stacks(pid: int) -> set[str]:
    """Those of stacks whose servers run below that process."""
    words = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words += child.cmdline()
    return set(re.findall(r"\S*/warm-engine-stack-\w+", " ".join(words)))


def runs(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
