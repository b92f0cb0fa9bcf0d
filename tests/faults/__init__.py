"""Injects faults into a stack under traffic and checks what callers and the database see."""

import argparse
import contextlib
import math


def positive_seconds(text: str) -> float:
    """Parse a duration given on the command line. Raise ArgumentTypeError if it is not positive."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text}: must be a positive number")
