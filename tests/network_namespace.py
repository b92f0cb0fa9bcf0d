"""Runs tests that drop packets or mount disks in namespaces, each in a pytest of its own."""

import subprocess
import sys
from functools import cache

import pytest

from infra.local import network

in_network_namespace = pytest.mark.network_namespace
_unavailable_reason = cache(network.unavailable_reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test, with its fixtures, inside; pytest itself runs the others."""
    if item.get_closest_marker(in_network_namespace.name) is None or network.is_isolated():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    call = pytest.CallInfo.from_call(
        lambda: run_inside(item), "call", reraise=(KeyboardInterrupt, pytest.exit.Exception)
    )
    item.ihook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # What an earlier test of the module set up is not the next module's; pytest has no public call.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def run_inside(item: pytest.Item) -> None:
    if reason := _unavailable_reason():
        pytest.skip(reason)
    inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", item.nodeid]
    done = subprocess.run(
        network.isolated_command(inner), cwd=item.config.rootpath, capture_output=True, text=True
    )
    if done.returncode or "1 passed" not in done.stdout:
        pytest.fail(done.stdout + done.stderr, pytrace=False)
