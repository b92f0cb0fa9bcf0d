"""The entry point of PgBouncer's image rejects dangerous names. It runs without a container."""

import os
import subprocess
from pathlib import Path

import pytest

from infra.local import ROOT

ENDPOINT = {"DB_HOST": "postgres", "DB_PORT": "5432", "DB_NAME": "storefront"}


def entrypoint(**environment: str) -> str:
    """Run the entry point, which always fails because there are no secrets; return its stderr."""
    result = subprocess.run(
        ["sh", ROOT / "pgbouncer/entrypoint.sh"],
        env={"PATH": os.environ["PATH"], **ENDPOINT, **environment},
        capture_output=True,
        text=True,
    )
    assert result.returncode == 1
    return result.stderr.rstrip()


@pytest.mark.parametrize("variable", ENDPOINT)
@pytest.mark.parametrize(
    "value", ["a b", "a\nauth_type = any", "a;DROP", "a'", 'a"', "a=b", "$(id)", "a#b"]
)
def test_a_name_that_could_inject_a_setting_is_rejected(variable: str, value: str) -> None:
    assert entrypoint(**{variable: value}) == (
        "entrypoint: DB_NAME, DB_HOST or DB_PORT holds more than letters, digits and ._:-"
    )


@pytest.mark.skipif(Path("/run/secrets").exists(), reason="this machine has /run/secrets")
def test_usual_names_are_accepted() -> None:
    for host in ("postgres", "db.example.com", "10.0.0.1", "fd00::1"):
        assert entrypoint(DB_HOST=host) == (
            "entrypoint: /run/secrets/lookup-password is missing or empty"
        )
