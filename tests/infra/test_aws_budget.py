"""A connection budget that does not fit fails the build and says what to change."""

import re
from dataclasses import replace

import pytest

from infra.aws import budget, template_file
from infra.aws.budget import Budget
from infra.local import ROOT
from tests.conftest import run
from tests.infra.deployment import deployment

DEFAULT = budget.from_templates()


def headroom(of: Budget) -> dict[str, int]:
    return {limit.title: limit.headroom(of) for limit in budget.limits(of)}


def test_the_defaults_fit_and_are_read_from_the_templates() -> None:
    assert budget.fits(DEFAULT)
    parameters = template_file.read("template")["Parameters"]
    assert parameters["ReservedConcurrency"]["Default"] == DEFAULT.ReservedConcurrency
    ini = (ROOT / "pgbouncer/pgbouncer.ini").read_text()
    assert f"\ndefault_pool_size = {DEFAULT.default_pool_size}\n" in ini
    assert f"\nmax_client_conn = {DEFAULT.max_client_conn}\n" in ini


def test_the_alarm_threshold_is_above_the_budget() -> None:
    _, used = budget.limits(DEFAULT)[-1].capacity_and_use(DEFAULT)
    parameter = template_file.read("template")["Parameters"]["BudgetedConnections"]
    assert parameter["Default"] == used


def test_the_command_prints_every_limit_and_exits_with_status_0() -> None:
    code, output = run("-m", "infra.aws.budget")
    assert code == 0, output
    for limit in budget.limits(DEFAULT):
        assert output.count(f"\n{limit.title} ") == 2, limit.title  # and once more at 10,000
    assert "10,000" in output


def test_a_budget_that_cannot_grow_to_ten_thousand_sandboxes_says_so() -> None:
    _, output = run("-m", "infra.aws.budget", "PoolSize=20")
    assert "10,000 sandboxes do not fit with a larger value of one input for each limit:" in output


def test_excessive_reserved_concurrency_is_rejected_by_name() -> None:
    ten = DEFAULT.ReservedConcurrency * 10
    code, output = run("-m", "infra.aws.budget", f"ReservedConcurrency={ten}")
    assert code == 1
    assert "change ReservedConcurrency=" in output


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
def test_a_budget_that_does_not_fit_is_rejected_with_a_value_that_fits(
    change: dict[str, object], limit: str, named: str
) -> None:
    tight = replace(DEFAULT, **change)  # type: ignore[arg-type]  # of several types
    assert [what for what, room in headroom(tight).items() if room < 0] == [limit]
    assert named in budget.table(tight)
    name, _, value = named.partition("=")
    fixed = replace(tight, **{name: type(getattr(tight, name))(value)})
    assert budget.fits(fixed)


@pytest.mark.parametrize("instance", budget.MEMORY)
def test_each_instance_class_accepts_exactly_its_limit(instance: str) -> None:
    capacity = budget.max_connections(budget.MEMORY[instance]) - budget.SUPERUSERS - budget.RDS
    # Connections per task are a free parameter, so the limit is met to within the number of tasks.
    tasks = DEFAULT.PoolerTasks * DEFAULT.MaximumPercent // 100
    others = budget.MAINTENANCE_CONNECTIONS + DEFAULT.HumanConnections
    size = (capacity - others) // tasks - DEFAULT.reserve_pool_size - budget.LOOKUP_CONNECTIONS
    at_edge = replace(DEFAULT, InstanceClass=instance, default_pool_size=size)
    assert 0 <= headroom(at_edge)["Postgres connections"] < tasks
    assert headroom(replace(at_edge, default_pool_size=size + 1))["Postgres connections"] < 0


# Memory in GiB, and `SHOW max_connections` of RDS for PostgreSQL as published by users. The formula
# is in
# https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/CHAP_Limits.html#RDS_Limits.MaxConnections;
# 1660 for 15.25 GiB is Amazon's own example.
@pytest.mark.parametrize(("gib", "published"), [(2, 198), (4, 413), (8, 856), (15.25, 1660)])
def test_the_formula_underestimates_by_ten_percent_at_most(gib: float, published: int) -> None:
    assert published * 0.9 <= budget.max_connections(gib) <= published
    assert budget.max_connections(gib) <= gib * 2**30 / 9531392


def test_no_instance_has_more_than_5000_connections() -> None:
    assert budget.max_connections(1024) == 5000


def test_at_10000_sandboxes_the_limits_to_raise_are_named() -> None:
    huge = replace(DEFAULT, ReservedConcurrency=10_000)
    enough = budget.grow_to_fit(huge)
    assert enough is not None
    assert budget.fits(enough)
    assert enough.PoolerTasks == DEFAULT.PoolerTasks
    assert enough.InstanceClass == DEFAULT.InstanceClass  # Postgres sees no more connections
    named = budget.changed_values(huge, enough)
    assert named == "AccountConcurrency=10100, OpenFiles=20100, max_client_conn=20000"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["Reserved=1"], "Reserved is not an input of the budget"),
        (["PoolSize=two"], "not an integer"),
        (["InstanceClass=db.x"], "InstanceClass must be one of db.t4g.micro"),
        (["PoolSize"], "NAME=VALUE"),
    ],
)
def test_an_unknown_parameter_is_reported_in_one_line(words: list[str], message: str) -> None:
    code, output = run("-m", "infra.aws.budget", *words)
    assert code == 2
    assert message in output
    assert output.count("\n") == 1


def test_with_rds_proxy_pinned_clients_are_budgeted_too() -> None:
    proxy = replace(DEFAULT, Connection="rds-proxy")
    _, output = run("-m", "infra.aws.budget", "Connection=rds-proxy")
    shared = proxy.max_connections * proxy.ProxyMaxConnectionsPercent // 100
    assert f"{proxy.clients} clients share {shared} server connections" in output
    assert f"{proxy.clients - shared} time out" in output
    [enough] = re.findall(r"With ReservedConcurrency=(\d+)", output)
    assert replace(proxy, ReservedConcurrency=int(enough)).clients <= shared
    assert "pinned" not in run("-m", "infra.aws.budget")[1]


def test_without_reserved_concurrency_the_account_limit_applies() -> None:
    new_account = replace(DEFAULT, ReservedConcurrency=0, AccountConcurrency=10)
    assert budget.fits(new_account)
    assert new_account.clients == budget.FLEETS * 10
    code, output = run("-m", "infra.aws.budget", "ReservedConcurrency=0", "AccountConcurrency=1100")
    assert code == 1  # 2 × 1,100 clients, and max_client_conn 2,000 with a task lost
    assert "change PoolerTasks=" in output or "max_client_conn=2200" in output


def test_no_reserved_concurrency_differs_from_zero() -> None:
    """A reserved concurrency of 0 switches a function off."""
    function = deployment(ReservedConcurrency=0).resources["Function/Function"]["Properties"]
    assert "ReservedConcurrentExecutions" not in function
    function = deployment(ReservedConcurrency=7).resources["Function/Function"]["Properties"]
    assert function["ReservedConcurrentExecutions"] == 7


@pytest.mark.parametrize(
    ("word", "allowed"),
    [
        ("PoolSize=0", "1 or more"),
        ("PoolerTasks=1", "2 or more"),
        ("MaxOverflow=-1", "0 or more"),
        ("ProxyMaxConnectionsPercent=101", "10 to 100"),
        ("ProcessesPerSandbox=0", "1 or more"),
        ("HumanConnections=-1", "0 or more"),
    ],
)
def test_a_number_that_cannot_be_deployed_is_rejected(word: str, allowed: str) -> None:
    code, output = run("-m", "infra.aws.budget", word)
    assert (code, output) == (2, f"budget: {word} is not allowed: it must be {allowed}\n")
    assert budget.from_templates(HumanConnections="0", MaxOverflow="0", ReservedConcurrency="0")
