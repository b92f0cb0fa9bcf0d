"""What is measured, how often, and what it ought to come to."""

#: By the names they have in the report. In this order they take turns.
HANDLERS = {
    "ours": "handler.main",
    "bones": "tests.benchmarks.anchors.bones",
    "seed": "tests.benchmarks.anchors.seed",
    "nullpool": "tests.benchmarks.anchors.nullpool",
    "asyncpg": "tests.benchmarks.anchors.bare",
}
RTTS_MS = (0, 1)
#: Turns of each handler and requests in each: a noise that comes and goes meets all alike.
TURNS, REQUESTS = 40, 25
#: Cold starts of each handler, compiled and not; fewer, but these, where a busy machine would take
#: longer for them than so many seconds.
STARTS, LEAST_STARTS, COLD_SECONDS = 8, 3, 150
#: Clients, and how many of them ask at a time; server connections for all.
SCALES = ((1, 1), (10, 10), (50, 50), (2000, 20))
SERVER_CONNECTIONS = 20
SECONDS = 6.0

#: Figure: what it must reach, and what would be better still.
TARGETS = {
    "round trips, warm": (1, 1),
    "round trips, cold, without TLS": (5, 5),
    "warm p50 ÷ seed, 0 ms": (0.30, 0.27),
    "warm p50 ÷ seed, 1 ms": (0.17, 0.15),
    "warm p50 ÷ asyncpg, 0 ms": (2.6, 2.35),
    "warm p50 ÷ asyncpg, 1 ms": (1.45, 1.3),
    "warm CPU ÷ seed": (0.37, 0.30),
    "cold CPU ÷ seed, not compiled": (0.30, 0.25),
    "cold CPU ÷ seed, compiled": (0.88, 0.75),
    "memory after 1,000 requests ÷ after 100": (1.02, 1.00),
}
