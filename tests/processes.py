"""Processes and folders that a command left behind."""

import contextlib
import re

import psutil


def stack_folders(pid: int) -> set[str]:
    """List the folders of the stacks whose servers run below that process."""
    words = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            words += child.cmdline()
    return set(re.findall(r"\S*/warm-engine-stack-\w+", " ".join(words)))


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
