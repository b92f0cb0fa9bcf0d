"""A cold start pays for every import before its first answer."""

import os
import subprocess
import sys

from infra.local import ROOT

#: What `handler.main` may cost to import, in CPU, interpreter included, as a multiple of asyncpg
#: alone. It may only fall. 5.3 when this was written, 6.7 on a machine that did much else.
IMPORT_BUDGET = 7.5
TRIES = 9


def cpu_seconds(module: str) -> float:
    script = f"import time, {module}; print(time.process_time())"
    # Bytecode may be written: without it this would measure the compiler.
    environment = {name: os.environ[name] for name in os.environ if name[:10] != "PYTHONDONT"}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return float(done.stdout)


def test_importing_the_handler_costs_a_few_times_the_driver() -> None:
    """The least of several in turn: what other processes take away is never less than nothing."""
    ours, driver = [], []
    for _ in range(TRIES):
        ours.append(cpu_seconds("handler.main"))
        driver.append(cpu_seconds("asyncpg"))
    assert min(ours) <= IMPORT_BUDGET * min(driver), (min(ours), min(driver))


def test_nothing_is_imported_that_only_a_document_or_a_migration_needs() -> None:
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


def test_who_needs_pydantic_1_still_gets_it() -> None:
    script = "import handler.main, pydantic.v1; print(pydantic.v1.BaseModel.__name__)"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout == "BaseModel\n", said.stderr


def test_the_openapi_models_are_built_when_they_are_asked_for_and_no_others() -> None:
    script = (
        "import handler.main, handler.app, fastapi.openapi.models as models\n"
        "print(models.OpenAPI.__pydantic_complete__, handler.app.OrderOut.__pydantic_complete__)\n"
        "print(sorted(handler.app.app.openapi()['paths']))"
    )
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.splitlines() == [
        "False True",
        "['/health', '/orders', '/orders/{order_id}', '/ready']",
    ], said.stderr


def test_garbage_is_looked_for_again_but_not_among_what_was_imported() -> None:
    script = "import gc, handler.main; print(gc.isenabled(), gc.get_freeze_count() > 50_000)"
    said = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert said.stdout.split() == ["True", "True"], said.stderr
