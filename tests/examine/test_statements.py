"""A function's statements are read from Postgres' log and classified."""

import pytest

from infra.local.examine.responses import are_equal, content
from infra.local.examine.statements import Statement, parse

LOG = """\
2026-11-27 06:00:00.000 UTC [7] appuser warm-engine LOG:  execute <unnamed>: SELECT id
\tFROM orders
\tWHERE id = $1
2026-11-27 06:00:00.000 UTC [7] appuser warm-engine DETAIL:  parameters: $1 = '1'
2026-11-27 06:00:00.001 UTC [8] appuser [unknown] LOG:  execute __asyncpg_stmt_1__: COMMIT
2026-11-27 06:00:00.002 UTC [9] postgres  LOG:  statement: SELECT 2
2026-11-27 06:00:00.003 UTC [8] appuser  LOG:  statement: SET search_path = a
2026-11-27 06:00:00.003 UTC [8] appuser  LOG:  disconnection: session time: 0:00:00.013
"""


def test_each_statement_has_its_name_and_all_its_lines() -> None:
    assert parse(LOG) == [
        Statement(7, "", "SELECT id\nFROM orders\nWHERE id = $1"),
        Statement(8, "__asyncpg_stmt_1__", "COMMIT"),
        Statement(8, "", "SET search_path = a"),
    ]


def test_the_tables_of_a_statement_are_recognized() -> None:
    joined = Statement(1, "", 'SELECT 1 FROM public.a JOIN "B" ON true; UPDATE c SET x = 1')
    assert joined.tables == {"public.a", "b", "c"}


@pytest.mark.parametrize(
    "sql",
    [
        "SET search_path = a",
        "set session work_mem = 1",
        "SELECT set_config('a', 'b', false)",
        "LISTEN channel",
        "SELECT pg_advisory_lock(1)",
        "CREATE TEMP TABLE a ()",
        "PREPARE a AS SELECT 1",
    ],
)
def test_session_state_is_detected(sql: str) -> None:
    assert Statement(1, "", sql).sets_session_state


@pytest.mark.parametrize(
    "sql",
    [
        "SET LOCAL work_mem = 1",
        "SET TRANSACTION READ ONLY",
        "SELECT set_config('a', 'b', true)",
        "SELECT pg_advisory_xact_lock(1)",
        "UPDATE a SET b = 1",
        "DISCARD ALL",
    ],
)
def test_state_that_ends_with_the_transaction_is_not_session_state(sql: str) -> None:
    assert not Statement(1, "", sql).sets_session_state


@pytest.mark.parametrize(
    ("sql", "is_work"),
    [
        ("SELECT id FROM orders", True),
        ("BEGIN", False),
        (";", False),
        ("SELECT 1", False),
        ("SELECT pg_advisory_unlock_all();\nCLOSE ALL;", False),
        ("SELECT t.oid FROM pg_catalog.pg_type t", False),
    ],
)
def test_statements_of_pools_and_drivers_are_not_the_function_s_work(
    sql: str, is_work: bool
) -> None:
    assert Statement(1, "", sql).is_work is is_work


def test_responses_are_compared_as_json_values() -> None:
    assert are_equal(
        content({"statusCode": 200, "body": '{"a": 5}'}), {"statusCode": 200, "body": {"a": 5.0}}
    )
    assert not are_equal({"a": 5}, {"a": 1084227584})
    assert not are_equal({"a": 1}, {"a": True})
    assert not are_equal([1, 2], [1])
