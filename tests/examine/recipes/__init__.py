"""Ways to reach Postgres from Lambda that the web recommends, as functions to be examined.

Each follows its own documentation, with the sample's table and event. `RECIPES` maps names to the
modules of the handlers.
"""

RECIPES = {
    "this handler": "handler.main",
    "the tutorial's engine": "tests.benchmarks.baselines.tutorial",
    "NullPool": "tests.benchmarks.baselines.nullpool",
    "psycopg 3 through SQLAlchemy": "tests.examine.recipes.async_psycopg",
    "asyncpg pool at import": "tests.examine.recipes.pool_at_import",
    "asyncio.run per event": "tests.examine.recipes.loop_per_event",
    "pre-ping, prepared_statement_cache_size=0": "tests.examine.recipes.pre_ping_without_cache",
    "synchronous engine with psycopg": "tests.examine.recipes.synchronous",
    "psycopg 3 with every remedy": "tests.examine.recipes.every_property",
}
