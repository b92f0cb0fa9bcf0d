"""Ways to reach Postgres from Lambda that the web recommends, as functions to be examined.

Each follows its own documentation, with the table and the event of the sample. The last is a public
project's handler as it ships, with a virtual environment, an event and a schema of its own.
"""

import json
from pathlib import Path

from infra.local import setup
from infra.local.examine.inputs import Inputs
from infra.local.examine.properties import PROPERTIES

#: The module of the `handler` of each.
MODULES = {
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

STAC = "stac-fastapi-pgstac 5.0.3"
_STAC_FOLDER = Path(__file__).parent / "stac_fastapi"
_STAC_VARIABLES = {
    "POSTGRES_USER": "{user}",
    "POSTGRES_PASS": "{password}",
    "POSTGRES_HOST_READER": "{host}",
    "POSTGRES_HOST_WRITER": "{host}",
    "POSTGRES_PORT": "{port}",
    "POSTGRES_DBNAME": "{name}",
    "PGSSLMODE": "{sslmode}",
    "PGSSLROOTCERT": "{ca}",
}
RECIPES = (*MODULES, STAC)

#: The properties that each recipe lacks in theory. A recipe without an extension is killed with its
#: connection open (`shutdown`), and one without a deadline is killed with its query (`deadline`).
PREDICTED_MISSING = {
    "this handler": set[str](),
    # BEGIN, ping and COMMIT are round trips of their own.
    "the tutorial's engine": {"round_trips", "shutdown", "deadline"},
    # Each request opens a connection, and closes it.
    "NullPool": {"round_trips", "deadline"},
    # Nothing checks the connection at checkout or repeats the query.
    "psycopg 3 through SQLAlchemy": {"thaw", "shutdown", "deadline"},
    # asyncpg's named statements belong to one server connection; its pool resets each connection.
    "asyncpg pool at import": {"round_trips", "pooling", "thaw", "shutdown", "deadline"},
    # The pool's connection belongs to the loop of the first event.
    "asyncio.run per event": {"events", "shutdown"},
    # The prepared statements that are not cached still have names.
    "pre-ping, prepared_statement_cache_size=0": {"round_trips", "pooling", "shutdown", "deadline"},
    "synchronous engine with psycopg": {"thaw", "shutdown", "deadline"},
    "psycopg 3 with every remedy": set[str](),
    # It connects in each event, as its lifespan does, with startup parameters and named statements.
    STAC: {"round_trips", "pooling", "deadline"},
}


def inputs_of(recipe: str, *, fast: bool) -> Inputs:
    """Return what to examine for a recipe: all properties."""
    wanted = tuple(PROPERTIES)
    if recipe != STAC:
        return Inputs(handler=f"{MODULES[recipe]}.handler", wanted=wanted, fast=fast)
    return Inputs(
        handler="stac_fastapi.pgstac.app.handler",
        root=_STAC_FOLDER,
        python=str(setup.folder("stac") / "bin/python"),
        events=(json.loads((_STAC_FOLDER / "event.json").read_text()),),
        variables=_STAC_VARIABLES,
        schema=_STAC_FOLDER / "schema.sql",
        wanted=wanted,
        fast=fast,
    )
