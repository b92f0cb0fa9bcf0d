"""The laboratory: a real Postgres behind a real PgBouncer without Docker, and a Lambda service."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


class LabError(Exception):
    """What stands in the way, for a person to read: one line with the fault and the way out."""
