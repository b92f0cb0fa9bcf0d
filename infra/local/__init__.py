"""The lab: a real Postgres and PgBouncer without Docker, and a Lambda service."""

from pathlib import Path

ROOT = Path(__file__).parents[2]


class LabError(Exception):
    """An error for the user: one line with the problem and its solution."""
