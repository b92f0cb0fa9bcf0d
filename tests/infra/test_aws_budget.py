"""The connection budget fails the build instead of the database, and says what to change."""

from dataclasses import replace

import pytest

from infra.aws import budget, template_file
from infra.aws.budget import Budget
from infra.local import ROOT
from tests.conftest import run

DEFAULT = budget.from_templates()


def left(of: Budget) -> dict[str, int]:
    return {limit.what: limit.left(of) for limit in budget.limits(of)}


def test_the_defaults_fit_and_come_from_where_they_are_set() -> None:
    assert budget.fits(DEFAULT)
    parameters = template_file.read("template")["Parameters"]
    assert parameters["ReservedConcurrency"]["Default"] == DEFAULT.ReservedConcurrency
    ini = (ROOT / "pgbouncer/pgbouncer.ini").read_text()
    assert f"\ndefault_pool_size = {DEFAULT.default_pool_size}\n" in ini
    assert f"\nmax_client_conn = {DEFAULT.max_client_conn}\n" in ini


def test_the_alarm_rings_above_what_the_budget_uses() -> None:
    _, used = budget.limits(DEFAULT)[-1].of(DEFAULT)
    parameter = template_file.read("template")["Parameters"]["BudgetedConnections"]
    assert parameter["Default"] == used


def test_the_command_prints_every_limit_and_leaves_with_0() -> None:
    code, said = run("-m", "infra.aws.budget")
    assert code == 0, said
    for limit in budget.limits(DEFAULT):
        assert said.count(f"\n{limit.what} ") == 2, limit.what  # and once more at 10,000
    assert "10,000" in said


def test_ten_times_the_reserved_concurrency_is_refused_by_name() -> None:
    ten = DEFAULT.ReservedConcurrency * 10
    code, said = run("-m", "infra.aws.budget", f"ReservedConcurrency={ten}")
    assert code == 1
    assert "change ReservedConcurrency=" in said


@pytest.mark.parametrize(
    ("change", "limit", "named"),
    [
        ({"PoolSize": 2}, "PgBouncer clients", "PoolSize=1"),
        ({"MaxOverflow": 1}, "PgBouncer clients", "MaxOverflow=0"),
        ({"ProcessesPerSandbox": 16}, "PgBouncer clients", "ReservedConcurrency=62"),
        ({"max_client_conn": 1000}, "PgBouncer clients", "max_client_conn=1200"),
        ({"max_client_conn": 9000}, "PgBouncer open files", "max_client_conn=8127"),
        ({"OpenFiles": 1024}, "PgBouncer open files", "OpenFiles=2100"),
        ({"ReservedConcurrency": 901}, "Lambda concurrency", "ReservedConcurrency=900"),
        ({"AccountConcurrency": 10}, "Lambda concurrency", "AccountConcurrency=700"),
        ({"PoolerTasks": 4, "InstanceClass": "db.t4g.micro"}, "Postgres connections",
         "PoolerTasks=2"),
        ({"PoolerTasks": 12}, "Postgres connections", "InstanceClass=db.t4g.medium"),
        ({"default_pool_size": 45}, "Postgres connections", "default_pool_size=39"),
        ({"reserve_pool_size": 40}, "Postgres connections", "reserve_pool_size=32"),
        ({"MaximumPercent": 700}, "Postgres connections", "default_pool_size=7"),
        ({"Connection": "rds-proxy", "ProxyMaxConnectionsPercent": 100}, "Postgres connections",
         "ProxyMaxConnectionsPercent=95"),
    ],
)  # fmt: skip
def test_a_budget_that_does_not_fit_is_refused_with_a_value_that_does(
    change: dict[str, object], limit: str, named: str
) -> None:
    tight = replace(DEFAULT, **change)  # type: ignore[arg-type]  # of several types
    assert [what for what, room in left(tight).items() if room < 0] == [limit]
    text = budget.table(tight)
    assert named in text
    name, _, value = named.partition("=")
    mended = replace(tight, **{name: type(getattr(tight, name))(value)})
    assert budget.fits(mended)


@pytest.mark.parametrize("instance", budget.MEMORY)
def test_each_instance_class_holds_up_to_its_edge_and_not_one_more(instance: str) -> None:
    there = budget.max_connections(budget.MEMORY[instance]) - budget.SUPERUSERS - budget.RDS
    # One connection a task is free to choose, so the edge is met to within the tasks.
    tasks = DEFAULT.PoolerTasks * DEFAULT.MaximumPercent // 100
    others = budget.TASKS + DEFAULT.HumanConnections
    size = (there - others) // tasks - DEFAULT.reserve_pool_size - budget.LOOKUP
    at_edge = replace(DEFAULT, InstanceClass=instance, default_pool_size=size)
    assert 0 <= left(at_edge)["Postgres connections"] < tasks
    assert left(replace(at_edge, default_pool_size=size + 1))["Postgres connections"] < 0


# Memory in GiB, and `SHOW max_connections` of an RDS Postgres with that much, as published by
# people who looked; the formula is https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/
# CHAP_Limits.html#RDS_Limits.MaxConnections, and 1660 for 15.25 GiB is Amazon's own example.
@pytest.mark.parametrize(("gib", "published"), [(2, 198), (4, 413), (8, 856), (15.25, 1660)])
def test_the_formula_stays_below_what_an_instance_has_by_a_tenth_at_most(
    gib: float, published: int
) -> None:
    assert published * 0.9 <= budget.max_connections(gib) <= published
    assert budget.max_connections(gib) <= gib * 2**30 / 9531392


def test_no_instance_has_more_than_5000() -> None:
    assert budget.max_connections(1024) == 5000


def test_at_10000_sandboxes_what_must_grow_is_named_and_then_fits() -> None:
    huge = replace(DEFAULT, ReservedConcurrency=10_000)
    enough = budget.grown(huge)
    assert enough is not None
    assert budget.fits(enough)
    assert enough.PoolerTasks == DEFAULT.PoolerTasks
    assert enough.InstanceClass == DEFAULT.InstanceClass  # Postgres sees no more connections
    named = budget.difference(huge, enough)
    assert named == "AccountConcurrency=10100, OpenFiles=20100, max_client_conn=20000"


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["Reserved=1"], "Reserved is no part of the budget"),
        (["PoolSize=two"], "a number is needed"),
        (["InstanceClass=db.x"], "InstanceClass is one of db.t4g.micro"),
        (["PoolSize"], "NAME=VALUE"),
    ],
)
def test_a_word_that_means_nothing_is_one_line(words: list[str], fault: str) -> None:
    code, said = run("-m", "infra.aws.budget", *words)
    assert code == 2
    assert fault in said
    assert said.count("\n") == 1
