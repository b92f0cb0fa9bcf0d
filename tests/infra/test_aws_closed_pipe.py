"""A command whose reader has gone ends without a traceback, as in `make budget | head`."""

import os
import subprocess
import sys

import pytest

from infra.aws import closed_pipe
from infra.local import ROOT


def into_closed_pipe(*words: str, unbuffered: str = "") -> tuple[int, str]:
    """Run Python with a stdout that nobody reads; return exit status and stderr."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    finally:
        os.close(writer)
    return done.returncode, done.stderr


@pytest.mark.parametrize(("word", "status"), [("PoolSize=1", 0), ("ReservedConcurrency=6000", 1)])
def test_a_command_that_has_finished_keeps_its_exit_status(word: str, status: int) -> None:
    assert into_closed_pipe("-m", "infra.aws.budget", word) == (status, "")


def test_a_command_that_cannot_print_stops_without_a_traceback() -> None:
    stopped = (closed_pipe.STOPPED, "")
    assert into_closed_pipe("-m", "infra.aws.budget", unbuffered="1") == stopped
    work = "lambda: print('row ' * 1_000_000) or 0"  # more than the buffer of stdout
    script = f"import sys; from infra.aws.account import command; sys.exit(command('x', {work}))"
    assert into_closed_pipe("-c", script) == stopped
