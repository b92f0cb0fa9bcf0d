"""A short soak run; `make soak` runs longer."""

import signal
from pathlib import Path

import psutil
import pytest

from infra.local.server import wait_until
from tests.conftest import command
from tests.processes import is_running, stack_folders

SOAK = ("-m", "tests.faults.soak")


def test_fifteen_seconds_of_mixed_faults_lose_no_write() -> None:
    process = command(*SOAK, "8", "0.25")
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "none lost or duplicated, no connection leaked" in output
    assert len(output.splitlines()) >= 4  # the seed, some faults, the summary


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_soak_leaves_no_process_or_folder(signal_number: signal.Signals) -> None:
    with command(*SOAK, "8", "1") as process:
        assert process.stdout is not None
        output = ""
        try:
            while "max latency" not in output:  # the first fault is over
                output += process.stdout.readline()
                assert process.poll() is None, output
            folders = stack_folders(process.pid)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal_number)
        output += process.stdout.read()
        assert process.wait(30) == 130, output
    assert folders
    assert "Traceback" not in output
    assert wait_until(lambda: not any(map(is_running, children)), 5)
    assert not [folder for folder in folders if Path(folder).exists()]


@pytest.mark.parametrize(
    "arguments", [(*SOAK, "8"), ("-m", "tests.faults")], ids=lambda words: words[1]
)
@pytest.mark.parametrize("duration", ["ten", "-1", "inf"])
def test_an_invalid_duration_is_rejected(arguments: tuple[str, ...], duration: str) -> None:
    process = command(*arguments, duration)
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert f"{duration}: must be a positive number" in output
