"""No role has more rights than it needs; the pooler does not store the application's password."""

import asyncpg
import pytest

from infra.database import roles
from infra.local.stack import DATABASE, Stack
from tests.conftest import administrator, wait_for_transports_closed
from tests.integration.role_logins import assert_forbidden, connect, through_pooler


@pytest.mark.parametrize(
    ("role", "statement"),
    [
        (roles.APP, "UPDATE orders SET status = 'paid'"),
        (roles.APP, "DELETE FROM orders"),
        (roles.APP, "TRUNCATE orders"),
        (roles.APP, "SELECT setval('orders_id_seq', 1)"),
        (roles.APP, "UPDATE order_requests SET order_id = 1"),
        (roles.APP, "DROP TABLE order_requests"),
        (roles.APP, "SET ROLE storefront_owner"),
        (roles.APP, "COPY orders TO PROGRAM 'true'"),
        (roles.APP, "ALTER TABLE orders ADD note text"),
        (roles.APP, "CREATE TABLE mine ()"),
        (roles.APP, "CREATE TEMP TABLE mine ()"),
        (roles.APP, "SELECT * FROM pooler.verifiers"),
        (roles.APP, "SELECT * FROM pooler.lookup('appuser')"),
        (roles.APP, "SELECT * FROM pg_authid"),
        (roles.LOOKUP, "SELECT * FROM orders"),
        (roles.LOOKUP, "SELECT * FROM pooler.verifiers"),
        (roles.LOOKUP, "SELECT * FROM order_requests"),
        (roles.LOOKUP, "INSERT INTO pooler.verifiers VALUES ('lookup', '')"),
        (roles.LOOKUP, "CREATE TABLE pooler.mine ()"),
        (roles.LOOKUP, "SELECT * FROM pg_authid"),
        (roles.OWNER, "SELECT * FROM pooler.verifiers"),
        (roles.OWNER, "SELECT * FROM pooler.lookup('appuser')"),
        (roles.OWNER, "CREATE ROLE another"),
    ],
)
async def test_no_role_has_more_rights_than_it_needs(
    stack: Stack, role: str, statement: str
) -> None:
    await assert_forbidden(stack, role, statement)


async def test_the_password_lookup_returns_only_the_verifier_of_the_application(
    stack: Stack,
) -> None:
    connection = await connect(stack, roles.LOOKUP)
    try:
        verifiers = await connection.fetch("SELECT * FROM pooler.lookup('appuser')")
        assert len(verifiers) == 1
        assert verifiers[0]["verifier"].startswith("SCRAM-SHA-256$4096:")
        for role in ("postgres", roles.OWNER, roles.LOOKUP, "nobody"):
            assert not await connection.fetch("SELECT * FROM pooler.lookup($1)", role)
    finally:
        await connection.close()


async def test_the_application_password_is_not_stored_on_the_pooler(stack: Stack) -> None:
    password = stack.settings().password.get_secret_value()
    assert await through_pooler(stack, password) == roles.APP
    files = [path for path in stack.pgbouncer.folder.rglob("*") if path.is_file()]
    assert stack.pgbouncer.folder / "userlist.txt" in files
    assert not [path for path in files if password.encode() in path.read_bytes()]
    assert password not in stack.pgbouncer.log_since_start() + stack.postgres.log_since_start()


async def test_a_new_password_takes_effect_at_once(own_stack: Stack) -> None:
    old = own_stack.settings().password.get_secret_value()
    assert await through_pooler(own_stack, old) == roles.APP
    try:
        for new in ("plain", "p@ss/w:rd#%20'\"\\? &=", "grün€\N{SNOWMAN}", "s" * 200):
            async with administrator(own_stack) as admin:
                await roles.set_password(admin, roles.APP, new)
            assert await through_pooler(own_stack, new) == roles.APP
            with pytest.raises(asyncpg.PostgresError, match="SASL authentication failed"):
                await through_pooler(own_stack, old)
            assert new not in own_stack.postgres.log_since_start()
            old = new
    finally:
        await wait_for_transports_closed()


async def test_roles_can_be_set_up_again(own_stack: Stack) -> None:
    passwords = dict.fromkeys((roles.OWNER, roles.APP, roles.LOOKUP), "another")
    await roles.bootstrap(own_stack.postgres.admin, DATABASE, passwords)
    await roles.bootstrap(own_stack.postgres.admin, DATABASE, passwords)
    connection = await asyncpg.connect(
        **{**own_stack.postgres.admin, "user": roles.APP, "password": "another"}, database=DATABASE
    )
    assert await connection.fetchval("SELECT count(*) FROM orders") == 1000
    await connection.close()


async def test_a_second_database_is_rejected_without_harming_the_first(own_stack: Stack) -> None:
    """Roles are server-wide: a new password would lock out the first database's clients."""
    passwords = dict.fromkeys((roles.OWNER, roles.APP, roles.LOOKUP), "another")
    with pytest.raises(roles.ForeignRoleError, match="not for the database second"):
        await roles.bootstrap(own_stack.postgres.admin, "second", passwords)
    password = own_stack.settings().password.get_secret_value()
    assert await through_pooler(own_stack, password) == roles.APP


async def test_the_administrator_need_not_be_a_superuser(own_stack: Stack) -> None:
    """A managed Postgres has no superuser; its administrator may create roles and databases."""
    superuser = await asyncpg.connect(**own_stack.postgres.admin, database="postgres")
    await superuser.execute("CREATE ROLE master LOGIN CREATEROLE CREATEDB PASSWORD 'm'")
    # CONNECT is no longer granted to PUBLIC.
    await superuser.execute("GRANT CONNECT ON DATABASE postgres TO master")
    for statement in (
        f"DROP DATABASE {DATABASE} WITH (FORCE)",
        *[f"DROP ROLE {role}" for role in (roles.APP, roles.LOOKUP, roles.OWNER)],
    ):
        await superuser.execute(statement)
    await superuser.close()
    master = {**own_stack.postgres.admin, "user": "master", "password": "m"}
    passwords = dict.fromkeys((roles.OWNER, roles.APP, roles.LOOKUP), "p")
    await roles.bootstrap(master, DATABASE, passwords)
    lookup = await asyncpg.connect(
        **{**master, "user": roles.LOOKUP, "password": "p"}, database=DATABASE
    )
    assert len(await lookup.fetch("SELECT * FROM pooler.lookup('appuser')")) == 1
    await lookup.close()
