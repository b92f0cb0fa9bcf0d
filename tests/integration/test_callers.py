"""An idempotency key belongs to one caller, even while old and new versions run side by side."""

import asyncio
import json
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from alembic import command

from handler import orders
from infra.database import schema
from infra.database.roles import OWNER
from infra.local.stack import Stack
from tests import events
from tests.conftest import (
    ColdHandler,
    Lambda,
    PgConnection,
    administrator,
    log_lines,
    set_environment,
)
from tests.integration.engines import handler_engines
from tests.unit.test_identity import CLAIMS, ROLE, iam, rest_iam

NAME = "Olive Oars"
Context = dict[str, Any]
EventBuilder = Callable[..., dict[str, Any]]
#: The statement of 0.1.0, and that of versions with `place_order` but without callers.
OLD_INSERT = """
WITH request AS (
  INSERT INTO order_requests AS request (key, body_sha256) VALUES ($1, $2)
  ON CONFLICT (key) DO UPDATE SET key = request.key
  RETURNING request.order_id, request.body_sha256, request.xmax = 0 AS is_new
), placed AS (
  INSERT INTO orders (id, customer_name, status)
  SELECT order_id, $3, $4 FROM request WHERE is_new
)
SELECT order_id, is_new, body_sha256 = $2 AS is_same_body FROM request
"""
OLD_FUNCTION = "SELECT order_id, is_new, is_same_body FROM place_order($1, $2, $3, $4)"
each_old_statement = pytest.mark.parametrize(
    "statement", [OLD_INSERT, OLD_FUNCTION], ids=["0.1.0", "0005"]
)


def jwt(subject: str) -> Context:
    return {"authorizer": {"jwt": {"claims": {**CLAIMS, "sub": subject}, "scopes": None}}}


def rest_jwt(subject: str) -> Context:
    return {"authorizer": {"claims": {**CLAIMS, "sub": subject}}}


def post(
    key: str, caller: Context, name: str = NAME, build: EventBuilder = events.http_api
) -> dict[str, Any]:
    body = json.dumps({"customer_name": name})
    event = build("POST", "/orders", body=body, idempotency_key=key)
    event["requestContext"] |= caller
    return event


def order_of(response: dict[str, Any]) -> int:
    assert response["statusCode"] == 201, response
    return int(json.loads(response["body"])["id"])


def is_replayed(response: dict[str, Any]) -> bool:
    return "idempotency-replayed" in str(response).lower()


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


@pytest.mark.parametrize(
    ("build", "amber", "coral"),
    [
        (events.http_api, jwt("amber"), jwt("coral")),
        (events.http_api_1_0, rest_jwt("amber"), rest_jwt("coral")),
        (events.rest_api, rest_jwt("amber"), rest_jwt("coral")),
        (events.http_api, iam(f"{ROLE}/1"), iam(f"{ROLE}2/1")),
        (events.function_url, iam(f"{ROLE}/1"), iam(f"{ROLE}2/1")),
        (events.rest_api, rest_iam(f"{ROLE}/1"), rest_iam(f"{ROLE}2/1")),
        (events.http_api, jwt("amber"), {}),
    ],
)
def test_the_same_key_from_two_callers_creates_two_orders(
    lambda_handler: Lambda, key: str, build: EventBuilder, amber: Context, coral: Context
) -> None:
    first = lambda_handler(post(key, amber, build=build))
    second = lambda_handler(post(key, coral, "Coral Cork", build=build))
    assert order_of(first) != order_of(second)
    assert not is_replayed(second)
    for caller, name, original in ((amber, NAME, first), (coral, "Coral Cork", second)):
        replay = lambda_handler(post(key, caller, name, build))
        assert order_of(replay) == order_of(original)
        assert is_replayed(replay)
    assert lambda_handler(post(key, amber, "Red Ropes", build))["statusCode"] == 409


def test_another_session_of_the_same_role_gets_the_stored_response(
    lambda_handler: Lambda, key: str
) -> None:
    first = lambda_handler(post(key, iam(f"{ROLE}/task-1")))
    replay = lambda_handler(post(key, iam(f"{ROLE}/task-2")))
    assert (order_of(replay), is_replayed(replay)) == (order_of(first), True)


def test_the_log_line_names_only_authenticated_callers(
    lambda_handler: Lambda, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lambda_handler(post(key, jwt("amber")))
    lambda_handler(post(key, {}))
    authenticated, anonymous = log_lines(capsys.readouterr().out)
    assert authenticated["caller"] == f"jwt {CLAIMS['iss']} amber"
    assert "caller" not in anonymous


def test_a_request_header_cannot_change_the_caller(lambda_handler: Lambda, key: str) -> None:
    first = lambda_handler(post(key, jwt("amber")))
    event = post(key, {})
    event["headers"] |= {"x-amzn-oidc-identity": "amber", "warm.caller": "jwt amber"}
    assert order_of(lambda_handler(event)) != order_of(first)


def test_a_configured_claim_distinguishes_callers_of_one_subject(
    stack: Stack, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    set_environment(monkeypatch, {**stack.environment(), "API_CALLER_CLAIM": "tenant"})
    tenant_7 = {"authorizer": {"lambda": {"tenant": "7"}}}
    tenant_8 = {"authorizer": {"lambda": {"tenant": "8"}}}
    with ColdHandler() as invoke:
        first = order_of(invoke(post(key, tenant_7)))
        assert order_of(invoke(post(key, tenant_8))) != first
        assert order_of(invoke(post(key, tenant_7))) == first


async def test_fifty_concurrent_requests_of_one_caller_create_one_order(
    stack: Stack, key: str, admin: PgConnection
) -> None:
    """Another caller uses the same key at the same time and gets one other order."""
    settings = stack.settings(through=stack.pgbouncer)
    order = {"body_sha256": "0" * 64, "customer_name": NAME, "status": "pending"}

    async def place(number: int) -> tuple[str, int]:
        caller = "amber" if number % 2 else "coral"
        async with engines[number % 10].connect() as connection:
            parameters = {"caller": caller, "key": key, **order}
            return caller, (await connection.execute(orders.PLACE, parameters)).one().order_id

    async with handler_engines(settings, 10) as engines:
        orders_by_caller = await asyncio.gather(*map(place, range(50)))
    assert len(set(orders_by_caller)) == 2
    assert len({order_id for _, order_id in orders_by_caller}) == 2


# --- Old and new versions ------------------------------------------------------------------------


async def place(
    connection: PgConnection, statement: str, key: str, name: str = NAME
) -> tuple[int, bool, bool]:
    """Create an order as an old version does, with the same digest of the body."""
    import hashlib

    body = json.dumps({"customer_name": name, "status": "pending"}, sort_keys=True)
    digest = hashlib.sha256(body.encode()).hexdigest()
    row = await connection.fetchrow(statement, key, digest, name, "pending")
    assert row is not None
    return row["order_id"], row["is_new"], row["is_same_body"]


@each_old_statement
async def test_a_key_without_a_caller_belongs_to_the_first_caller_who_sends_it(
    lambda_handler: Lambda, key: str, statement: str, admin: PgConnection
) -> None:
    order_id, is_new, _ = await place(admin, statement, key)
    assert is_new
    # A caller with another body does not get the key.
    assert lambda_handler(post(key, jwt("coral"), "Coral Cork"))["statusCode"] == 409
    for _ in range(2):
        replay = lambda_handler(post(key, jwt("amber")))
        assert (order_of(replay), is_replayed(replay)) == (order_id, True)
    assert order_of(lambda_handler(post(key, jwt("coral")))) != order_id
    assert (await place(admin, statement, key))[:2] == (order_id, False)


@each_old_statement
async def test_an_old_version_finds_orders_created_by_the_new_one(
    lambda_handler: Lambda, key: str, statement: str, admin: PgConnection
) -> None:
    """During a rollout or rollback a retry may reach either version."""
    order_id = order_of(lambda_handler(post(key, jwt("amber"))))
    assert await place(admin, statement, key) == (order_id, False, True)
    assert await place(admin, statement, key, "Red Ropes") == (order_id, False, False)
    replay = lambda_handler(post(key, jwt("amber")))
    assert (order_of(replay), is_replayed(replay)) == (order_id, True)


@each_old_statement
async def test_a_key_stored_before_the_migration_is_found_after_it(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, key: str, statement: str
) -> None:
    set_environment(monkeypatch, own_stack.environment())
    owner = own_stack.settings(user=OWNER)
    await schema.migrate(owner, lambda config: command.downgrade(config, "0005"))
    async with administrator(own_stack) as admin:
        order_id, _, _ = await place(admin, statement, key)
        await schema.migrate(owner)
        with ColdHandler() as invoke:
            replay = invoke(post(key, jwt("amber")))
        assert (order_of(replay), is_replayed(replay)) == (order_id, True)
        await schema.migrate(owner, lambda config: command.downgrade(config, "0005"))
        assert await place(admin, statement, key) == (order_id, False, True)
        assert await admin.fetchval("SELECT count(*) FROM order_requests") == 1


async def test_an_expired_key_can_be_reused_by_its_caller(
    own_stack_handler: Lambda, own_stack: Stack, key: str
) -> None:
    first = order_of(own_stack_handler(post(key, jwt("amber"))))
    async with administrator(own_stack) as admin:
        await admin.execute("UPDATE order_requests SET created_at = now() - interval '2 days'")
        assert own_stack_handler({"source": "aws.events"}) == {"warm": True, "forgotten": 2}
        assert await admin.fetchval("SELECT count(*) FROM order_requests") == 0
    assert order_of(own_stack_handler(post(key, jwt("amber")))) != first
