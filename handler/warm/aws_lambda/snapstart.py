"""SnapStart: hooks before a snapshot and after a restore."""

import os
import random
from collections.abc import Callable


def around_snapshot(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` before the snapshot and `after` in each copy restored from it."""
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        return
    from snapshot_restore_py import (  # part of the runtime client
        register_after_restore,
        register_before_snapshot,
    )

    register_before_snapshot(before)
    register_after_restore(random.seed)  # else all copies have the same random numbers
    register_after_restore(after)
