"""`make budget`: prints the connection budget.

`python -m infra.aws.budget [NAME=VALUE …]`: if the fleet does not fit, it says what to change and
exits with status 1. It exits with status 2 for an invalid argument.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace

from infra.aws.budget import changed_values, fits, from_templates, grow_to_fit, if_pinned, table
from infra.aws.closed_pipe import stop_at_closed_pipe


def main() -> int:
    return stop_at_closed_pipe(lambda: report(sys.argv[1:]))


def report(arguments: Sequence[str]) -> int:
    """Print the budget with the inputs in `arguments` (NAME=VALUE) and return the exit status."""
    try:
        pairs = [argument.partition("=") for argument in arguments]
        if not all(equals for _, equals, _ in pairs):
            raise ValueError("usage: python -m infra.aws.budget [NAME=VALUE …]")
        budget = from_templates(**{name: value for name, _, value in pairs})
    except ValueError as error:
        print(f"budget: {error}", file=sys.stderr)
        return 2
    print(f"Worst case during a deployment, through {budget.Connection}:\n\n{table(budget)}\n")
    huge = replace(budget, ReservedConcurrency=10_000)
    grown = grow_to_fit(huge)
    if grown is None:
        print("10,000 sandboxes do not fit with a larger value of one input for each limit:\n")
    else:
        print(f"The same with 10,000 sandboxes, which needs {changed_values(huge, grown)}:\n")
    print(f"{table(grown or huge)}\n")
    if budget.Connection == "rds-proxy":
        print(f"{if_pinned(budget)}\n")
    print("It fits." if fits(budget) else "It does not fit: this fleet could exceed a limit.")
    return 0 if fits(budget) else 1


if __name__ == "__main__":
    sys.exit(main())
