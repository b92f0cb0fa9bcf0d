"""Ends a command quietly when the reader of its output has gone, as in `make budget | head`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

#: The exit status of a program that SIGPIPE ended, as shells report it.
STOPPED = 141


def stop_at_closed_pipe(work: Callable[[], int]) -> int:
    """Run `work` and return its exit status, or STOPPED if it could not finish printing.

    SIGPIPE stays ignored, as Python sets it: otherwise a closed network connection would end the
    process too.
    """
    status = STOPPED
    try:
        status = work()
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would print a traceback for it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status
