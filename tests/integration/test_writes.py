"""An order is created once, however often and however concurrently the request is sent."""

import asyncio
import json
import re
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from handler import orders
from handler.warm.database.engine import create_engine
from infra.database.roles import APP, LOOKUP
from infra.local.fleet import Fleet, InvocationResult
from infra.local.stack import Stack
from infra.local.tcp_proxy import TcpProxy
from tests.conftest import ColdHandler, Lambda, PgConnection, set_environment
from tests.events import http_api
from tests.integration.engines import handler_engines

NAME = "Olive Oars"


def post(key: str, body: object = None, **headers: str) -> dict[str, Any]:
    content = body if isinstance(body, str) else json.dumps(body or {"customer_name": NAME})
    return http_api("POST", "/orders", body=content, idempotency_key=key, **headers)


@pytest.fixture
def key() -> str:
    return str(uuid.uuid4())


async def count_orders(admin: PgConnection, key: str) -> int:
    """Count the orders that were created with an idempotency key."""
    return int(
        await admin.fetchval(
            "SELECT count(*) FROM orders JOIN order_requests ON id = order_id WHERE key = $1", key
        )
    )


def test_a_new_order_has_status_201_and_can_be_read(lambda_handler: Lambda, key: str) -> None:
    response = lambda_handler(post(key, {"customer_name": NAME, "status": "paid"}))
    order = json.loads(response["body"])
    assert response["statusCode"] == 201
    assert order == {"id": order["id"], "customer_name": NAME, "status": "paid"}
    assert response["headers"]["location"] == f"orders/{order['id']}"
    assert "idempotency-replayed" not in response["headers"]
    assert json.loads(lambda_handler(http_api("GET", f"/orders/{order['id']}"))["body"]) == order


async def test_repeating_a_request_returns_the_same_response(
    stack: Stack, lambda_handler: Lambda, key: str, admin: PgConnection
) -> None:
    first = lambda_handler(post(key))
    await admin.execute(
        "UPDATE orders SET status = 'shipped' WHERE id = $1", json.loads(first["body"])["id"]
    )
    # The body is the same JSON with another order and other spaces.
    replay = lambda_handler(post(key, f'{{ "status": "pending", "customer_name": "{NAME}" }}'))
    assert (replay["statusCode"], replay["body"]) == (201, first["body"])
    assert replay["headers"]["idempotency-replayed"] == "true"
    assert await count_orders(admin, key) == 1


async def test_another_body_with_the_same_key_is_409_and_creates_nothing(
    lambda_handler: Lambda, key: str, admin: PgConnection
) -> None:
    lambda_handler(post(key))
    before = await admin.fetchval("SELECT count(*) FROM orders")
    response = lambda_handler(post(key, {"customer_name": "Red Sails"}))
    assert response["statusCode"] == 409
    assert "Idempotency-Key" in json.loads(response["body"])["detail"]
    assert await admin.fetchval("SELECT count(*) FROM orders") == before


async def test_fifty_concurrent_requests_with_one_key_create_one_order(
    stack: Stack, key: str, admin: PgConnection
) -> None:
    order = {"body_sha256": "0" * 64, "customer_name": NAME, "status": "pending"}
    parameters = {"caller": "", "key": key, **order}

    async def place(number: int) -> tuple[int, bool, bool]:
        async with engines[number % 10].connect() as connection:
            row = (await connection.execute(orders.PLACE, parameters)).one()
        return row.order_id, row.is_new, row.is_same_body

    async with handler_engines(stack.settings(through=stack.pgbouncer), 10) as engines:
        results = await asyncio.gather(*map(place, range(50)))
    assert len({order_id for order_id, _, _ in results}) == 1
    assert sum(is_new for _, is_new, _ in results) == 1
    assert all(is_same_body for _, _, is_same_body in results)
    assert await count_orders(admin, key) == 1


async def test_fifty_invocations_with_one_key_return_the_same_201(
    stack: Stack, key: str, admin: PgConnection
) -> None:
    async with Fleet(stack.environment(), concurrency=5) as fleet:

        async def invoke_ten_times() -> list[InvocationResult]:
            return [await fleet.invoke(post(key)) for _ in range(10)]

        groups = await asyncio.gather(*(invoke_ten_times() for _ in range(5)))
    responses = [result.payload for group in groups for result in group]
    assert {response["statusCode"] for response in responses} == {201}
    assert len({response["body"] for response in responses}) == 1
    replayed = ["idempotency-replayed" in response["headers"] for response in responses]
    assert replayed.count(False) == 1
    assert await count_orders(admin, key) == 1


def test_a_missing_or_invalid_key_has_status_400(lambda_handler: Lambda) -> None:
    without_key = http_api("POST", "/orders", body=json.dumps({"customer_name": NAME}))
    for event in (without_key, post(""), post("k" * 256), post("ü"), post("\x7f")):
        response = lambda_handler(event)
        assert response["statusCode"] == 400
        assert "idempotency-key" in json.loads(response["body"])["detail"].lower()
    assert lambda_handler(post("~" * 255))["statusCode"] == 201


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"customer_name": "x" * 121}, 422, "customer_name: .*at most 120"),
        ({"customer_name": ""}, 422, "customer_name: .*at least 1"),
        ({"customer_name": "a\0b"}, 422, "customer_name: contains a character that is not allowed"),
        ('{"customer_name": "\\ud800"}', 422, "customer_name: .*unicode"),
        ({"customer_name": 7}, 422, "customer_name: .*valid string"),
        ({"customer_name": None}, 422, "customer_name: .*valid string"),
        ({"customer_name": NAME, "status": "x" * 33}, 422, "status: .*at most 32"),
        ({"customer_name": NAME, "status": ""}, 422, "status: .*at least 1"),
        ({"customer_name": NAME, "discount": 1}, 422, "discount: .*not permitted"),
        ({}, 422, "customer_name: Field required"),
        ([NAME], 422, "body: "),
        ('"text"', 422, "body: "),
        ("null", 422, "body: "),
        ("{", 400, "body: JSON decode error"),
        ('{"customer_name": "' + "x" * 2**20 + '"}', 413, "Too Large"),
    ],
    ids=lambda value: str(value)[:40] if not isinstance(value, int) else "",
)
async def test_an_invalid_body_is_rejected_and_writes_nothing(
    lambda_handler: Lambda, key: str, admin: PgConnection, body: object, status: int, message: str
) -> None:
    before = await admin.fetchval("SELECT count(*) FROM orders")
    content = body if isinstance(body, str) else json.dumps(body)
    response = lambda_handler(post(key, content))
    assert response["statusCode"] == status, response
    assert re.search(message, json.loads(response["body"])["detail"]), response["body"]
    assert await admin.fetchval("SELECT count(*) FROM orders") == before
    assert await count_orders(admin, key) == 0
    assert lambda_handler(http_api("GET", "/orders/1"))["statusCode"] == 200


def test_a_name_of_120_characters_in_any_script_is_accepted(
    lambda_handler: Lambda, key: str
) -> None:
    name = "\N{SNOWMAN}ü한" * 40
    response = lambda_handler(post(key, {"customer_name": name}))
    assert response["statusCode"] == 201
    assert json.loads(response["body"])["customer_name"] == name


@pytest.mark.parametrize("content_length", ["1", "16384", "16385", ""])
def test_a_body_above_16_kib_is_413_despite_a_false_length(
    lambda_handler: Lambda, key: str, content_length: str
) -> None:
    headers = {"content_length": content_length} if content_length else {}
    longest = json.dumps({"customer_name": NAME}).ljust(16 * 1024)
    assert lambda_handler(post(key, longest + " ", **headers))["statusCode"] == 413
    if content_length in ("", "16384"):
        assert lambda_handler(post(key, longest, **headers))["statusCode"] == 201


def test_a_body_that_is_not_json_is_rejected(lambda_handler: Lambda, key: str) -> None:
    text_event = post(key)
    text_event["headers"]["content-type"] = "text/plain"
    assert lambda_handler(text_event)["statusCode"] == 422
    for encoded in ("/w==", "!!!!", "e30", "eyJ9"):
        response = lambda_handler(post(key) | {"isBase64Encoded": True, "body": encoded})
        assert 400 <= response["statusCode"] < 500, (encoded, response)


@pytest.fixture
def small_pgbouncer(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a PgBouncer with three server connections, and configure the handler for it."""
    with stack.another_pgbouncer(
        settings={"default_pool_size": 3, "reserve_pool_size": 0}
    ) as bouncer:
        set_environment(monkeypatch, stack.environment(bouncer))
        yield bouncer


def pool(bouncer: Any) -> dict[str, Any]:
    return next(row for row in bouncer.show("POOLS") if row["user"] == APP)


def test_invalid_requests_on_cold_connections_release_their_server_connection(
    small_pgbouncer: Any,
) -> None:
    invalid_requests = [
        http_api("GET", "/orders/2147483648"),
        http_api("GET", "/orders/-1"),
        http_api("GET", "/orders", "after=99999999999"),
        http_api("GET", "/orders", "status=%00"),
        post("k", {"customer_name": "a\0b"}),
    ]
    for number in range(20):
        with ColdHandler() as invoke:
            assert invoke(invalid_requests[number % len(invalid_requests)])["statusCode"] == 422
    with ColdHandler() as invoke:
        assert invoke(http_api("GET", "/orders/1"))["statusCode"] == 200
        assert pool(small_pgbouncer)["sv_active"] == 0


async def test_a_value_the_driver_cannot_send_releases_its_server_connection(stack: Stack) -> None:
    """A route that does not validate its input can cause this."""
    with stack.another_pgbouncer(
        settings={"default_pool_size": 1, "reserve_pool_size": 0}
    ) as bouncer:
        first, second = (
            create_engine(stack.settings(through=bouncer), isolation_level="AUTOCOMMIT")
            for _ in range(2)
        )
        try:
            async with first.connect() as connection:
                with pytest.raises(DBAPIError, match="value out of int32 range"):
                    await connection.execute(orders.BY_ID, {"id": 2**31})
            async with second.connect() as connection:
                assert (await connection.execute(orders.BY_ID, {"id": 1})).one()
        finally:
            await first.dispose()
            await second.dispose()


async def test_a_burst_of_logins_uses_at_most_two_lookup_connections(stack: Stack) -> None:
    with stack.another_pgbouncer() as bouncer:
        settings = stack.settings(through=bouncer, connect_timeout=30)

        async def read(number: int) -> int:
            async with engines[number].connect() as connection:
                await connection.execute(orders.BY_ID, {"id": 1})
            if number % 10:
                return 0
            servers = await asyncio.to_thread(bouncer.show, "SERVERS")
            return len([row for row in servers if row["user"] == LOOKUP])

        async with handler_engines(settings, 100) as engines:
            counts = await asyncio.gather(*map(read, range(100)))
            assert 1 <= max(counts) <= 2


async def test_prewarming_holds_no_server_connection(stack: Stack, small_pgbouncer: Any) -> None:
    environment = stack.environment(small_pgbouncer) | {"DB_PREWARM": "required"}
    async with Fleet(environment, concurrency=3) as fleet:
        invocations = [fleet.invoke(http_api("GET", "/health")) for _ in range(3)]
        assert {result.payload["statusCode"] for result in await asyncio.gather(*invocations)} == {
            200
        }
        assert (pool(small_pgbouncer)["cl_active"], pool(small_pgbouncer)["sv_active"]) == (3, 0)


async def test_a_read_a_write_and_a_page_take_one_round_trip_each(stack: Stack) -> None:
    bouncer = stack.pgbouncer
    with TcpProxy(bouncer.host, bouncer.port) as proxy:
        async with Fleet(stack.environment() | {"DB_PORT": str(proxy.port)}) as fleet:
            for is_cold in (True, False):
                for event in (
                    http_api("GET", "/orders/1"),
                    http_api("GET", "/orders"),
                    http_api("GET", "/orders", "status=paid"),
                    post(str(uuid.uuid4())),
                    http_api("GET", "/ready"),
                ):
                    proxy.reset_counters()
                    assert (await fleet.invoke(event)).payload["statusCode"] in (200, 201)
                    if not is_cold:
                        assert (proxy.round_trips, proxy.connections) == (1, 0), event["rawPath"]


async def test_a_transaction_does_not_leak_its_isolation_level(stack: Stack) -> None:
    """The next checkout is READ COMMITTED again, even after an error."""
    engine = create_engine(stack.settings(through=stack.pgbouncer))
    try:
        for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"):
            async with engine.execution_options(isolation_level=level).begin() as connection:
                current = await connection.scalar(text("SHOW transaction_isolation"))
                assert current == level.lower()
                pooled = await connection.get_raw_connection()
                assert pooled.driver_connection is not None
                assert pooled.driver_connection.is_in_transaction()
            with pytest.raises(DBAPIError, match="division by zero"):
                async with engine.execution_options(isolation_level=level).begin() as connection:
                    await connection.execute(text("SELECT 1 / 0"))
            async with engine.connect() as connection:
                current = await connection.scalar(text("SHOW transaction_isolation"))
                assert current == "read committed"
    finally:
        await engine.dispose()


async def test_old_keys_are_deleted_and_recent_ones_kept(
    own_stack: Stack, own_admin: PgConnection
) -> None:
    await own_admin.execute(
        "INSERT INTO order_requests SELECT n::text, 'x', n, now() - n * interval '1 hour'"
        " FROM generate_series(1, 48) AS n"
    )
    async with Fleet(own_stack.environment()) as fleet:
        ping = {"source": "aws.events", "detail-type": "Scheduled Event", "detail": {}}
        assert (await fleet.invoke(ping)).payload == {"warm": True, "forgotten": 25}
        assert (await fleet.invoke(ping)).payload == {"warm": True, "forgotten": 0}
    assert await own_admin.fetchval("SELECT count(*) FROM order_requests") == 23


async def test_a_collation_update_cannot_turn_one_key_into_two_orders(admin: Any) -> None:
    """The column and its unique index compare bytes, whatever the C library's collation is."""
    rows = await admin.fetch(
        "SELECT relname, collname FROM pg_attribute JOIN pg_class ON pg_class.oid = attrelid"
        " JOIN pg_collation ON pg_collation.oid = attcollation"
        " WHERE relname IN ('order_requests', 'order_requests_pkey') AND attname = 'key'"
    )
    assert {(row["relname"], row["collname"]) for row in rows} == {
        ("order_requests", "C"),
        ("order_requests_pkey", "C"),
    }
