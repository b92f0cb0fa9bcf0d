"""For tests that drop packets: each runs in a network of its own, by a pytest of its own."""

import subprocess
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import pytest

from infra.local import ROOT, network

_obstacle = cache(network.obstacle)


def in_own_network(test: Callable[..., Any]) -> Callable[..., Any]:
    """Runs `test`, fixtures and parameters and all, where `network.Filter` may drop packets; skips
    it where no such network can be had."""
    if network.is_own():
        return test
    name = f"{test.__module__.replace('.', '/')}.py::{test.__name__}"

    def run_inside() -> None:
        if obstacle := _obstacle():
            pytest.skip(obstacle)
        inner = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", name]
        done = subprocess.run(network.command(inner), cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr

    run_inside.__name__, run_inside.__doc__ = test.__name__, test.__doc__
    run_inside.__module__ = test.__module__
    return run_inside
