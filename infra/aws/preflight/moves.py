"""Rejects changes for which CloudFormation would delete the database, or fail to move it."""

from __future__ import annotations

from collections.abc import Iterator

from infra.aws import parameters
from infra.aws.parameters import Problem
from infra.aws.preflight.findings import Findings


def moves(findings: Findings) -> Iterator[Problem]:
    """Compare the new parameters with those of the existing stack."""
    if not findings.stored:
        return
    before, after = parameters.effective({}, findings.stored), findings.values
    if bool(before["DatabaseHost"]) != bool(after["DatabaseHost"]):
        effect = (
            "delete the stack's database" if after["DatabaseHost"] else "create an empty database"
        )
        yield Problem(
            f"DatabaseHost was {before['DatabaseHost'] or 'empty'}: the change would {effect}, "
            "and no data is moved",
            f"Keep `DatabaseHost={before['DatabaseHost']}`. To move, deploy another stack "
            "(STACK=…) on the other database, copy the data, then `make destroy` this one",
        )
    names = ("VpcId", "SubnetIds") if before["VpcId"] or after["VpcId"] else ("Zones",)
    for name in names:
        if {*parameters.listed(before[name])} != {*parameters.listed(after[name])}:
            yield Problem(
                f"{name} was {before[name] or 'empty'}: the database, the load balancer and the "
                "functions cannot be moved to another network",
                f"Keep `{name}={before[name]}`. To move, deploy another stack there (STACK=…), "
                "copy the data, then `make destroy` this one",
            )
