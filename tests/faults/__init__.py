import argparse
import contextlib
import math


def a_while(text: str) -> float:
    """How long something lasts, as a command line says it. Raises ArgumentTypeError."""
    with contextlib.suppress(ValueError):
        if 0 < (number := float(text)) < math.inf:
            return number
    raise argparse.ArgumentTypeError(f"{text}: a number above 0 says how long")
