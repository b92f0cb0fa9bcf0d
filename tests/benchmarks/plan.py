"""What is measured, how often, and what it ought to come to."""

#: By the names they have in the report. In this order they take turns.
HANDLERS = {
    "warm_engine": "handler.main",
    "frameworks_only": "tests.benchmarks.baselines.frameworks_only",
    "tutorial": "tests.benchmarks.baselines.tutorial",
    "nullpool": "tests.benchmarks.baselines.nullpool",
    "bare_asyncpg": "tests.benchmarks.baselines.bare_asyncpg",
}
RTTS_MS = (0, 1)
#: Turns of each handler and requests in each: a noise that comes and goes meets all alike.
TURNS, REQUESTS = 40, 25
#: Cold starts of each handler, compiled and not; fewer, but these, where a busy machine would take
#: longer for them than so many seconds.
STARTS, MIN_STARTS, COLD_TIME_LIMIT_S = 8, 3, 150
#: Clients, and how many of them ask at a time; server connections for all.
SCALES = ((1, 1), (10, 10), (50, 50), (2000, 20))
SERVER_CONNECTIONS = 20
SCALE_DURATION_S = 6.0

#: Metric: its target, and what would be better still.
TARGETS = {
    "warm_db_round_trips": (1, 1),
    "cold_db_round_trips_without_tls": (5, 5),
    "warm_p50_ratio_to_tutorial_at_0_ms": (0.30, 0.27),
    "warm_p50_ratio_to_tutorial_at_1_ms": (0.17, 0.15),
    "warm_p50_ratio_to_bare_asyncpg_at_0_ms": (2.6, 2.35),
    "warm_p50_ratio_to_bare_asyncpg_at_1_ms": (1.45, 1.3),
    "warm_cpu_ratio_to_tutorial": (0.37, 0.30),
    "cold_cpu_ratio_to_tutorial_not_compiled": (0.30, 0.25),
    "cold_cpu_ratio_to_tutorial_compiled": (0.88, 0.75),
    "rss_ratio_1000_to_100_requests": (1.02, 1.00),
}
