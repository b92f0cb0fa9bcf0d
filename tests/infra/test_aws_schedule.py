"""The scheduled event, sent to the real handler, deletes old idempotency keys."""

import json
from typing import Any

import asyncpg

from infra.local.stack import Stack
from tests.conftest import Lambda, administrator
from tests.infra.deployment import WITH_PGBOUNCER, only


async def keys(connection: "asyncpg.Connection[Any]") -> list[str]:
    return [row["key"] for row in await connection.fetch("SELECT key FROM order_requests")]


async def test_the_scheduled_event_deletes_keys_older_than_a_day(
    own_stack: Stack, own_stack_handler: Lambda
) -> None:
    rule = only(WITH_PGBOUNCER.of_type("AWS::Events::Rule"))
    assert rule["ScheduleExpression"] == "rate(1 hour)"
    [target] = rule["Targets"]
    assert target["Arn"] == "Function/FunctionAliaslive"  # the alias that callers use
    async with administrator(own_stack) as admin:
        for key, age in (("old", "2 days"), ("young", "1 hour")):
            await admin.execute(
                "INSERT INTO order_requests (key, body_sha256, order_id, created_at)"
                f" VALUES ('{key}', '', 1, now() - interval '{age}')"
            )
        assert own_stack_handler(json.loads(target["Input"])) == {"warm": True, "forgotten": 1}
        assert await keys(admin) == ["young"]
