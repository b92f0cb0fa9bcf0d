"""The one ini: what it promises, on the PgBouncer of this machine."""

import asyncpg
import psycopg
import pytest

from infra.database.roles import APP
from infra.local.stack import Stack
from tests.conftest import let_go


def test_pooling_is_by_transaction_and_nothing_waits_longer_than_a_caller(stack: Stack) -> None:
    config = {row["key"]: row["value"] for row in stack.pgbouncer.show("CONFIG")}
    assert config["pool_mode"] == "transaction"
    assert config["auth_type"] == "scram-sha-256"
    assert config["client_tls_protocols"] == "tlsv1.3"
    assert config["client_tls_sslmode"] == "require"
    assert int(config["default_pool_size"]) + int(config["reserve_pool_size"]) < 17
    assert float(config["query_wait_timeout"]) < float(config["query_timeout"]) < 29
    assert config["server_login_retry"] == "1"
    assert (
        config[
            "max_prepared_statements" if "max_prepared_statements" in config else "disable_pqexec"
        ]
        == "0"
    )


def test_a_frozen_sandbox_is_left_alone_for_as_long_as_the_handler_would_use_its_connection(
    stack: Stack,
) -> None:
    """It acknowledges neither a probe nor the last packet it got: these are idle limits as well."""
    config = {row["key"]: row["value"] for row in stack.pgbouncer.show("CONFIG")}
    kept = stack.settings().max_idle
    assert kept < float(config["client_idle_timeout"])
    assert kept < float(config["tcp_keepidle"])
    assert kept < float(config["tcp_user_timeout"]) / 1000


async def test_a_client_without_tls_is_turned_away(stack: Stack) -> None:
    settings = stack.settings()
    with pytest.raises(asyncpg.PostgresError, match="SSL required"):
        await asyncpg.connect(
            host=stack.pgbouncer.host,
            port=stack.pgbouncer.port,
            user=APP,
            password=settings.password.get_secret_value(),
            database=settings.name,
            ssl=False,
        )
    await let_go()


def test_clients_come_in_by_tls_1_3(stack: Stack) -> None:
    assert all(row["tls"].startswith("TLSv1.3/") for row in stack.pgbouncer.show("CLIENTS"))


def test_the_console_is_closed_to_the_application(stack: Stack) -> None:
    with pytest.raises(psycopg.OperationalError, match="SASL authentication failed"):
        psycopg.connect(
            host=stack.pgbouncer.host,
            port=stack.pgbouncer.port,
            user=APP,
            password=stack.settings().password.get_secret_value(),
            dbname="pgbouncer",
            sslmode="require",
        )


async def test_a_startup_parameter_that_would_be_dropped_is_refused(stack: Stack) -> None:
    settings = stack.settings()
    with pytest.raises(asyncpg.PostgresError, match="unsupported startup parameter"):
        await asyncpg.connect(
            host=stack.pgbouncer.host,
            port=stack.pgbouncer.port,
            user=APP,
            password=settings.password.get_secret_value(),
            database=settings.name,
            ssl=stack.pgbouncer.trust(),
            server_settings={"statement_timeout": "1s"},
        )
    await let_go()
