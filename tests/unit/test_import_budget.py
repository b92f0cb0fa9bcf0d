"""Imports are limited, because every cold start pays for them."""

import os
import subprocess
import sys

from infra.local import ROOT

#: The CPU time of importing `handler.main`, interpreter included, as a multiple of importing
#: asyncpg alone. It was 5.3 when this was written, 6.7 on a busy machine. Only ever lower it.
IMPORT_BUDGET = 7.5
TRIES = 9


def cpu_seconds(module: str) -> float:
    script = f"import time, {module}; print(time.process_time())"
    # With bytecode, or this would measure the compiler.
    environment = {name: os.environ[name] for name in os.environ if name[:10] != "PYTHONDONT"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return float(done.stdout)


def test_importing_the_handler_costs_a_small_multiple_of_the_driver() -> None:
    """Take the minimum of several runs: other processes only ever add time."""
    ours, driver = [], []
    for _ in range(TRIES):
        ours.append(cpu_seconds("handler.main"))
        driver.append(cpu_seconds("asyncpg"))
    assert min(ours) <= IMPORT_BUDGET * min(driver), (min(ours), min(driver))


def test_imports_only_needed_by_documentation_or_migrations_are_absent() -> None:
    script = "import sys, handler.main; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True
    )
    unneeded = {
        "uvicorn",
        "httpx",
        "boto3",
        "alembic",
        "psycopg",
        "aiohttp",
        "requests",
        "multipart",
    }
    assert "handler.main" in loaded.stdout.split(), loaded.stderr
    assert not {name.partition(".")[0] for name in loaded.stdout.split()} & unneeded
    assert "pydantic.v1" not in loaded.stdout.split()


def test_pydantic_1_can_still_be_imported() -> None:
    script = "import handler.main, pydantic.v1; print(pydantic.v1.BaseModel.__name__)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == "BaseModel\n", done.stderr


def test_openapi_models_are_built_on_demand() -> None:
    script = (
        "import handler.main, handler.app, fastapi.openapi.models as models\n"
        "print(models.OpenAPI.__pydantic_complete__, handler.app.OrderOut.__pydantic_complete__)\n"
        "print(sorted(handler.app.app.openapi()['paths']))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "False True",
        "['/health', '/orders', '/orders/{order_id}', '/ready']",
    ], done.stderr


def test_garbage_collection_resumes_and_skips_imported_objects() -> None:
    script = "import gc, handler.main; print(gc.isenabled(), gc.get_freeze_count() > 50_000)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True", "True"], done.stderr
