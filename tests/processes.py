"""Finds the processes and folders of a running command."""

import contextlib
import re

import psutil


def stack_folders(pid: int) -> set[str]:
    """Return the folders of the stacks whose servers are descendants of a process."""
    arguments: list[str] = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            arguments += child.cmdline()
    return set(re.findall(r"\S*/warm-engine-stack-\w+", " ".join(arguments)))


def is_running(process: psutil.Process) -> bool:
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
