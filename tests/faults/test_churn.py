"""Churn measures which connections ended sandboxes hold, and cleans up when it is interrupted."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.local import network
from infra.local.churn import plan as churn_plan
from infra.local.churn.plan import EndingScenario, Plan
from infra.local.churn.result import Result
from infra.local.churn.run import Run
from tests.conftest import eventually
from tests.mutations import copy_of_the_code
from tests.network_namespace import in_network_namespace
from tests.processes import is_running, stack_folders


async def run_churn(
    path: churn_plan.ConnectionPath,
    scenario: EndingScenario,
    monkeypatch: pytest.MonkeyPatch,
    *,
    release_timeout: float = 25,
) -> Result:
    monkeypatch.setattr("infra.local.churn.run.WARM_PHASE_S", 1.0)
    monkeypatch.setattr("infra.local.churn.run.RELEASE_TIMEOUT_S", release_timeout)
    async with Run(path, scenario, Plan(sandboxes=4), lambda _: None) as run:
        await run.churn()
        await run.release()
        return run.result


@in_network_namespace
async def test_vanished_sandboxes_hold_pgbouncer_clients_but_no_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await run_churn(
        churn_plan.ConnectionPath.PGBOUNCER, EndingScenario.VANISH, monkeypatch
    )
    assert result.failed == result.in_flight_at_ending == 0
    assert result.succeeded == result.invocations >= 50
    assert result.held_backends == 0
    assert result.held_clients >= 4  # a busy machine starts more sandboxes
    assert result.peak_backends <= 13
    assert result.release_s is not None
    assert 1 < result.release_s <= result.release_limit_s


@in_network_namespace
async def test_frozen_sandboxes_without_a_pooler_hold_their_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await run_churn(
        churn_plan.ConnectionPath.DIRECT, EndingScenario.FREEZE, monkeypatch, release_timeout=2
    )
    # A busy machine starts more sandboxes, which then find no free connection.
    assert result.failures_by_cause.keys() <= {"53300"}
    assert result.held_backends >= 4
    assert result.release_s is None


@in_network_namespace
async def test_gracefully_stopped_sandboxes_hold_no_connections(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await run_churn(
        churn_plan.ConnectionPath.PGBOUNCER, EndingScenario.GRACEFUL, monkeypatch
    )
    assert (result.failed, result.held_clients, result.unclean_closes) == (0, 0, 0)
    assert result.release_s is not None
    assert result.release_s <= result.release_limit_s


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_churn_cleans_up_and_marks_its_report_partial(
    tmp_path: Path, signal_number: signal.Signals
) -> None:
    if reason := network.unavailable_reason():
        pytest.skip(reason)
    copy_of_the_code(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "infra.local", "churn"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SANDBOXES": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    ) as process:
        assert process.stdout is not None
        output_bytes = b""  # text mode would turn a carriage return into a newline
        try:
            while b"direct     graceful" not in output_bytes:  # the first row is complete
                output_bytes += process.stdout.readline()
                assert process.poll() is None, output_bytes
            folders = eventually(lambda: stack_folders(process.pid), 20)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(signal_number)
        output_bytes += process.stdout.read()
        assert process.wait(30) == 130
    output = output_bytes.decode()
    assert "\r" not in output  # a progress bar would contain it
    assert re.search(r"written .*\(partial\)", output)
    assert "Traceback" not in output
    assert '"partial": true' in (tmp_path / "reports/churn.json").read_text()
    end = time.monotonic() + 5
    while any(map(is_running, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if is_running(child)]
    assert not [folder for folder in folders if Path(folder).exists()]
