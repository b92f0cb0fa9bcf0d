"""Run the migrations and fill in sample orders, as the owner role.

Owns the calls into Alembic. `alembic upgrade head` from the command line does the same, with the
owner in `DB_USER` and `DB_PASS`.
"""

from collections.abc import Callable
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection

from handler.connection import connector
from handler.engine import create_engine
from handler.settings import Settings

ROOT = Path(__file__).parents[2]
#: An index on a large table takes longer than any request may, in seconds.
LONG = 86_400.0

#: A trading name for every id: 20 colours and 50 trades give 1,000 different ones.
SAMPLE = """
INSERT INTO orders (customer_name, status)
SELECT color || ' ' || trade, (ARRAY['pending', 'paid', 'shipped'])[1 + (n - 1) % 3]
FROM generate_series(1, 1000) AS n,
LATERAL (SELECT
  (string_to_array('Amber,Azure,Black,Blue,Bronze,Coral,Crimson,Golden,Green,Grey,Indigo,Ivory,'
    'Jade,Lilac,Olive,Red,Silver,Teal,Violet,White', ','))[1 + (n - 1) % 20] AS color,
  (string_to_array('Bakery,Bicycles,Books,Bottles,Boxes,Brushes,Buttons,Cables,Candles,Canvas,'
    'Ceramics,Chairs,Clocks,Coffee,Compasses,Copper,Cork,Desks,Drums,Fabrics,Flutes,Frames,'
    'Gardens,Glass,Hats,Hinges,Kettles,Kites,Ladders,Lamps,Leather,Lenses,Maps,Mirrors,Nails,'
    'Oars,Paints,Paper,Pianos,Prints,Ropes,Sails,Seeds,Shoes,Soap,Spices,Tiles,Tools,Toys,Wool',
    ','))[1 + (n - 1) / 20] AS trade) AS name
WHERE NOT EXISTS (SELECT FROM orders)
ORDER BY n
"""


async def migrate(
    owner: Settings, run: Callable[[Config], None] = lambda config: command.upgrade(config, "head")
) -> None:
    """Bring the schema to its newest revision, or `run` another of Alembic's commands, in one
    transaction: it happens as a whole or not at all."""
    config = Config(toml_file=ROOT / "pyproject.toml")

    def on(connection: Connection) -> None:
        config.attributes["connection"] = connection
        run(config)

    patient = owner.model_copy(update={"command_timeout": LONG})
    engine = create_engine(patient).execution_options(isolation_level="READ COMMITTED")
    try:
        async with engine.begin() as connection:
            await connection.run_sync(on)
    finally:
        await engine.dispose()


async def load_sample(owner: Settings) -> None:
    """1,000 orders with ids from 1 up, into an empty table only."""
    connection = await connector(owner)()
    try:
        await connection.execute(SAMPLE)
    finally:
        await connection.close()
