"""A small churn: what ended sandboxes hold, and that an interrupted one leaves nothing."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from infra.local import network
from infra.local.churn import plan as sizes
from infra.local.churn.plan import Plan, Row
from infra.local.churn.run import Result, Run
from tests.conftest import eventually
from tests.mutations import copy_of_the_code
from tests.own_network import in_own_network
from tests.processes import folders_of_stacks, runs


async def churned(
    path: sizes.Path, row: Row, monkeypatch: pytest.MonkeyPatch, *, horizon: float = 25
) -> Result:
    monkeypatch.setattr("infra.local.churn.run.WARM_SECONDS", 1.0)
    monkeypatch.setattr("infra.local.churn.run.HORIZON", horizon)
    async with Run(path, row, Plan(sandboxes=4), lambda _: None) as run:
        await run.churn()
        await run.release()
        return run.result


@in_own_network
async def test_vanished_behind_pgbouncer_they_hold_clients_places_and_no_backend(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await churned(sizes.Path.PGBOUNCER, Row.VANISH, monkeypatch)
    assert result.failed == result.in_flight_at_ending == 0
    assert result.ok == result.invocations >= 50
    assert result.backends_after == 0
    assert result.clients_after >= 4  # on a busy machine there were more sandboxes to end
    assert result.peak_backends <= 13
    assert result.release_seconds is not None
    assert 1 < result.release_seconds <= result.release_bound_seconds


@in_own_network
async def test_left_frozen_on_postgres_they_hold_their_backends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = await churned(sizes.Path.DIRECT, Row.FREEZE, monkeypatch, horizon=2)
    assert result.failed == 0
    assert result.backends_after >= 4
    assert result.release_seconds is None


@in_own_network
async def test_with_a_goodbye_they_hold_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result = await churned(sizes.Path.PGBOUNCER, Row.GRACEFUL, monkeypatch)
    assert (result.failed, result.clients_after, result.unclean_closes) == (0, 0, 0)
    assert result.release_seconds is not None
    assert result.release_seconds <= result.release_bound_seconds


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_it_leaves_nothing_and_says_that_its_report_is_partial(
    tmp_path: Path, number: signal.Signals
) -> None:
    if obstacle := network.obstacle():
        pytest.skip(obstacle)
    copy_of_the_code(tmp_path)
    with subprocess.Popen(
        [sys.executable, "-m", "infra.local", "churn"],
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "SANDBOXES": "2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        said = ""
        try:
            while "direct     graceful" not in said:  # the first row is complete
                said += process.stdout.readline()
                assert process.poll() is None, said
            folders = eventually(lambda: folders_of_stacks(process.pid), 20)
            children = psutil.Process(process.pid).children(recursive=True)
        finally:
            process.send_signal(number)
        said += process.stdout.read()
        assert process.wait(30) == 130
    assert re.search(r"written .*\(partial\)", said)
    assert "Traceback" not in said
    assert '"partial": true' in (tmp_path / "reports/churn.json").read_text()
    end = time.monotonic() + 5
    while any(map(runs, children)) and time.monotonic() < end:
        time.sleep(0.05)
    assert not [child for child in children if runs(child)]
    assert not [folder for folder in folders if Path(folder).exists()]
