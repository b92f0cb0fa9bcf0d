"""Runs `make verify`: prints a table, writes `reports/aws.json` and exits with status 1 for a "no".

STACK names the stack. CHANGES=1 adds checks that change the deployment. TOKEN is a JWT, for a
deployment that requires one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from infra.aws import account, programs, stacks
from infra.aws.verify import changes, connections, operation, serving
from infra.aws.verify.deployment import Deployment
from infra.aws.verify.finding import Check, Finding

REPORT = programs.ROOT / "reports" / "aws.json"


def checks(deployment: Deployment, with_changes: bool) -> Iterator[Check]:
    """Yield the checks. Those that change something come early, as others need their effects."""
    first, *others = serving.CHECKS
    yield first
    if with_changes:
        yield from changes.CHECKS
    yield from others
    yield connections.CLOSED
    yield connections.BUDGET
    if deployment.uses_proxy:
        yield connections.PINNED
    yield operation.SCHEDULED
    yield from operation.alarms(deployment)


def verify(stack: str, with_changes: bool, report: Path = REPORT) -> int:
    """Run the checks, print and write their findings, and return the exit status."""
    deployment = Deployment.find(account.identify(), stack)
    account_info = deployment.account
    print(
        f"{stack} in account {account_info.number}, {account_info.region}: {deployment.url}\n",
        flush=True,
    )
    rows: list[tuple[Check, Finding]] = []
    for check in checks(deployment, with_changes):
        finding = check.run(deployment)
        rows.append((check, finding))
        print(f"{check.name:20}{finding.answer:16}{finding.seen}", flush=True)
    report.parent.mkdir(exist_ok=True)
    report.write_text(json.dumps(_report(deployment, with_changes, rows), indent=1) + "\n")
    failed = [check.name for check, finding in rows if finding.answer == "no"]
    undetermined = sum(1 for _, finding in rows if finding.answer == "could not tell")
    passed = len(rows) - len(failed) - undetermined
    print(f"\n{passed} yes, {len(failed)} no, {undetermined} could not tell")
    if failed:
        print(f"not as documented: {', '.join(failed)}")
    return 1 if failed else 0


def _report(
    deployment: Deployment, with_changes: bool, rows: list[tuple[Check, Finding]]
) -> dict[str, Any]:
    return {
        "stack": deployment.stack.name,
        "region": deployment.account.region,
        "at": deployment.started.isoformat(timespec="seconds"),
        "parameters": deployment.stack.parameters,
        "changes": with_changes,
        "rows": [
            {
                "name": check.name,
                "claim": check.claim,
                "answer": finding.answer,
                "seen": finding.seen,
            }
            for check, finding in rows
        ],
    }


def main() -> int:
    stack, with_changes = stacks.chosen_name(), os.environ.get("CHANGES") == "1"
    return account.command("verify", lambda: verify(stack, with_changes))


if __name__ == "__main__":
    sys.exit(main())
