"""Runs each test that drops packets or mounts disks in its own pytest, in its own namespaces."""

import subprocess
import sys
from functools import cache

import pytest

from infra.local import network

in_network_namespace = pytest.mark.network_namespace
_unavailable_reason = cache(network.unavailable_reason)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> bool | None:
    """Run a marked test with its fixtures in namespaces, and leave other tests to pytest."""
    if item.get_closest_marker(in_network_namespace.name) is None or network.is_isolated():
        return None
    item.ihook.pytest_runtest_logstart(nodeid=item.nodeid, location=item.location)
    call = pytest.CallInfo.from_call(
        lambda: run_in_namespaces(item), "call", reraise=(KeyboardInterrupt, pytest.exit.Exception)
    )
    item.ihook.pytest_runtest_logreport(report=pytest.TestReport.from_item_and_call(item, call))
    item.ihook.pytest_runtest_logfinish(nodeid=item.nodeid, location=item.location)
    # Tear down the module's fixtures before the next module, for which there is no public API.
    item.session._setupstate.teardown_exact(nextitem)
    return True


def run_in_namespaces(item: pytest.Item) -> None:
    if reason := _unavailable_reason():
        pytest.skip(reason)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", item.nodeid]
    result = subprocess.run(
        network.isolated_command(command), cwd=item.config.rootpath, capture_output=True, text=True
    )
    if result.returncode or "1 passed" not in result.stdout:
        pytest.fail(result.stdout + result.stderr, pytrace=False)
