"""Runs the `main` of a `python -m tests.…` command."""

import sys
from collections.abc import Callable
from typing import NoReturn

from infra.local import LabError


def exit_with(main: Callable[[], int]) -> NoReturn:
    """Exit with the status of `main`: report a LabError in one line, and Ctrl-C as 130."""
    try:
        sys.exit(main())
    except LabError as error:
        sys.exit(f"warm-engine: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
