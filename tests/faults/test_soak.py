"""Faults in an order that nobody chose: a little of it; `make soak` takes as long as you like."""

import signal
from pathlib import Path

import psutil
import pytest

from infra.local.server import wait_until
from tests.conftest import command
from tests.processes import folders_of_stacks, runs

SOAK = ("-m", "tests.faults.soak")


def test_a_quarter_of_a_minute_of_mixed_faults_loses_nothing() -> None:
    process = command(*SOAK, "8", "0.25")
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert "none lost or doubled, nothing left behind" in said
    assert len(said.splitlines()) >= 4  # the seed, some faults, and that


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_in_a_fault_it_leaves_nothing(number: signal.Signals) -> None:
    with command(*SOAK, "8", "1") as process:
        assert process.stdout is not None
        said = ""
        try:
            while said.count("worst") < 1:  # one is over, another one begins
                said += process.stdout.readline()
                assert process.poll() is None, said
            folders = folders_of_stacks(process.pid)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(number)
        said += process.stdout.read()
        assert process.wait(30) == 130, said
    assert folders
    assert "Traceback" not in said
    assert wait_until(lambda: not any(map(runs, children)), 5)
    assert not [folder for folder in folders if Path(folder).exists()]


@pytest.mark.parametrize(
    "arguments", [(*SOAK, "8"), ("-m", "tests.faults")], ids=lambda words: words[1]
)
@pytest.mark.parametrize("time", ["ten", "-1", "inf"])
def test_a_time_that_is_none_is_refused_at_once(arguments: tuple[str, ...], time: str) -> None:
    process = command(*arguments, time)
    said, _ = process.communicate()
    assert process.returncode == 2, said
    assert f"{time}: a number above 0 says how long" in said
