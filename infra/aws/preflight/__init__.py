"""Preflight: finds what would make a deployment fail, before anything is created.

A check is a function that yields problems. All problems are reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from infra.aws import budget, parameters
from infra.aws.account import Account, OperatorError, explain, identify, is_denied, one_line
from infra.aws.parameters import Problem
from infra.aws.preflight import builder, existing, names, quotas
from infra.aws.preflight.findings import Check, Findings
from infra.aws.preflight.moves import moves

#: The first one reads the existing stack's parameters, which the others need.
CHECKS: tuple[Check, ...] = (
    names.existing_stacks,
    quotas.concurrency,
    names.free_names,
    quotas.vpcs,
    quotas.fargate,
    *existing.CHECKS,
)


@dataclass
class Plan:
    """What to deploy, after all checks have passed."""

    stack: str
    is_new: bool
    parameters: dict[str, str]
    account: Account
    budget: budget.Budget
    notes: list[str]


def examine(words: Sequence[str], stack: str) -> Plan:
    """Run the checks for the parameters `words` (NAME=VALUE) and return the plan.

    Raises OperatorError with all problems.
    """
    chosen, problems = parameters.parse(words)
    findings = Findings(stack, chosen, problems)
    findings.problems += names.stack_name(stack)
    account = None
    try:
        account = identify()
    except OperatorError as error:
        findings.problems.append(Problem(str(error), "The checks of the account were skipped"))
    if account is not None:
        for check in CHECKS:
            _run(partial(check, findings, account), findings)
    findings.values = findings.parameters | findings.values
    invalid = list(parameters.problems(findings.values, account.region if account else ""))
    findings.problems += invalid
    findings.problems += moves(findings)
    sized = None if invalid else _budget(findings)
    _run(partial(builder.docker, findings.values.get("Architecture", "x86_64")), findings)
    if findings.problems or account is None or sized is None:
        raise OperatorError(_report(findings))
    return Plan(stack, not findings.stored, findings.values, account, sized, findings.notes)


def _run(check: Callable[[], Iterator[Problem]], findings: Findings) -> None:
    """Run a check. A denied request is not a problem: a deployment needs fewer permissions."""
    try:
        for problem in check():  # one by one, to keep those that come before an error
            findings.problems.append(problem)
    except (BotoCoreError, ClientError) as error:
        if isinstance(error, ClientError) and is_denied(error):
            findings.notes.append(f"not permitted: {one_line(error)}")
        else:
            findings.problems.append(Problem(f"AWS returns an error: {explain(error)}", "Retry"))


def _budget(findings: Findings) -> budget.Budget | None:
    """Return the connection budget, or None if it does not fit."""
    inputs = {field.name for field in fields(budget.Budget)}
    values: dict[str, Any] = {k: v for k, v in findings.values.items() if k in inputs}
    if findings.account_concurrency is not None:
        values["AccountConcurrency"] = findings.account_concurrency
    try:
        sized = budget.from_templates(**values)
    except ValueError as error:
        findings.problems.append(Problem(str(error), "make budget"))
        return None
    if not budget.fits(sized):
        table = budget.table(sized).replace("\n", "\n    ")
        findings.problems.append(Problem("the connection budget does not fit", table))
        return None
    return sized


def _report(findings: Findings) -> str:
    count = len(findings.problems)
    lines = [f"nothing was created: {count} {'problem' if count == 1 else 'problems'}"]
    for problem in findings.problems:
        lines += [f"  - {problem.cause}", f"    {problem.hint}"]
    lines += [
        f"  (not checked: {note})" for note in findings.notes if note.startswith("not permitted")
    ]
    return "\n".join(lines)
