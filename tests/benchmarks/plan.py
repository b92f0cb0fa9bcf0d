"""What is measured, how often, and the targets."""

from dataclasses import dataclass, replace

#: Names in the report → the Lambda handlers, in the order in which they take turns.
HANDLERS = {
    "warm_engine": "handler.main.handler",
    "frameworks_only": "tests.benchmarks.baselines.frameworks_only.handler",
    "tutorial": "tests.benchmarks.baselines.tutorial.handler",
    "nullpool": "tests.benchmarks.baselines.nullpool.handler",
    "async_psycopg": "tests.benchmarks.baselines.async_psycopg.handler",
    "fastapi_asyncpg": "tests.benchmarks.baselines.fastapi_asyncpg.handler",
    "bare_asyncpg": "tests.benchmarks.baselines.bare_asyncpg.handler",
}
#: What each stage adds to the one before it. The first is the driver, the last `frameworks_only`.
STAGES = {
    "driver": "tests.benchmarks.baselines.bare_asyncpg.handler",
    "core": "tests.benchmarks.baselines.stages.core",
    "orm": "tests.benchmarks.baselines.stages.orm",
    "fastapi": "tests.benchmarks.baselines.stages.fastapi",
    "mangum": "tests.benchmarks.baselines.frameworks_only.handler",
}
#: Both, each handler once.
ALL_HANDLERS = HANDLERS | {
    stage: handler for stage, handler in STAGES.items() if handler not in HANDLERS.values()
}


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    `rounds`: each starts new processes, in which the handlers take turns. The smallest and the
    largest of n rounds contain the true median with a probability of 1 - 2^(1-n): 94 % for five.
    `turns`: by round trip time in ms, the turns of each handler in a round.
    `starts`: cold starts of each handler; fewer, but at least `rounds`, after `cold_limit_s`.
    `scales`: clients, how many of them send requests at the same time, and PgBouncers.
    """

    handlers: dict[str, str]
    turns: dict[int, int]
    rounds: int = 5
    starts: int = 8
    cold_limit_s: float = 120
    compiled: tuple[bool, ...] = (True, False)
    scales: tuple[tuple[int, int, int], ...] = (
        (1, 1, 1),
        (10, 10, 1),
        (50, 50, 1),
        (2000, 20, 1),
    )


#: Requests in a turn: short, so that noise that comes and goes affects all handlers alike.
REQUESTS = 25
STANDARD = Plan(handlers=ALL_HANDLERS, turns={0: 20, 1: 5})
#: With FAST=1: under two minutes.
FAST = Plan(
    handlers={name: HANDLERS[name] for name in ("warm_engine", "frameworks_only", "async_psycopg")},
    turns=STANDARD.turns,
    starts=STANDARD.rounds,
    compiled=(True,),
    scales=(),
)
FULL = replace(STANDARD, scales=(*STANDARD.scales, (10_000, 20, 1), (10_000, 20, 4)))
#: On another Python, with FULL=1.
OTHER_PYTHON = Plan(
    handlers={name: HANDLERS[name] for name in ("warm_engine", "frameworks_only")}, turns={0: 20}
)

#: Clients that connect at the same moment, and the CPUs of their PgBouncer, with FULL=1.
STORMS, STORM_CPUS = (100, 300, 600), 0.25
#: How long Postgres takes for each password lookup (`auth_query`) in the second half of the storms.
SLOW_LOOKUP_MS = 50

SERVER_CONNECTIONS = 20
SCALE_DURATION_S = 6.0

#: Metric → target and stretch target. A ratio divides the handler's figure by the named one's.
TARGETS = {
    "warm_db_round_trips": (1, 1),
    "cold_db_round_trips_without_tls": (5, 5),
    "cold_db_round_trips_with_tls": (7, 7),
    "warm_instructions_ratio_to_frameworks_only": (1.08, 1.0),
    "cold_instructions_ratio_to_frameworks_only": (0.95, 0.9),
    "warm_p50_ratio_to_frameworks_only_at_0_ms": (1.05, 1.0),
    "warm_p50_ratio_to_frameworks_only_at_1_ms": (1.03, 1.0),
    "warm_p50_ratio_to_async_psycopg_at_1_ms": (0.9, 0.8),
    "cold_cpu_ratio_to_frameworks_only_compiled": (0.97, 0.93),
}

#: Count → its limit. Not a target: a change that exceeds one must explain itself.
COUNT_LIMITS: dict[str, float] = {
    "warm_db_round_trips": 1,
    "cold_db_round_trips_without_tls": 5,
    "cold_db_round_trips_with_tls": 7,
    "warm_statements": 1,
    "modules_more_than_frameworks_only": 70,
    "module_kib_more_than_frameworks_only": 420,
    "cold_instructions_ratio_to_frameworks_only": 1.06,
    "warm_instructions_ratio_to_frameworks_only": 1.45,
}
