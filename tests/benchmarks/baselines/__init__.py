"""Handlers to compare with: each as its documentation recommends, right through transaction
pooling, on the same table, behind the same event. Where the database is, as whom: `DB_*`."""

import os
from typing import Any


def login() -> dict[str, Any]:
    """asyncpg's words for `DB_*`. No TLS: what is compared is compared without."""
    return {
        "host": os.environ["DB_HOST"],
        "port": int(os.environ["DB_PORT"]),
        "database": os.environ["DB_NAME"],
        "user": os.environ["DB_USER"],
        "password": os.environ["DB_PASS"],
        "ssl": False,  # asyncpg's own "prefer" would cost a round trip more on each connect
    }
