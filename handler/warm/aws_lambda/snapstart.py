"""SnapStart: hooks before a snapshot and after a restore."""

import os
import random
from collections.abc import Callable


def around_snapshot(before: Callable[[], None], after: Callable[[], None]) -> None:
    """Call `before` before the snapshot and `after` in each copy restored from it."""
    if os.environ.get("AWS_LAMBDA_INITIALIZATION_TYPE") != "snap-start":
        return
    import snapshot_restore_py as runtime  # part of the runtime client

    runtime.register_before_snapshot(before)
    runtime.register_after_restore(random.seed)  # else all copies have the same random numbers
    runtime.register_after_restore(after)
