"""The handler imports little, because each cold start waits for its imports."""

import os
import subprocess
import sys

from infra.local import ROOT

#: The maximum CPU time of importing `handler.main`, with the interpreter's start, as a multiple of
#: importing asyncpg alone. Measured: 5.3, on a busy machine 6.7. Never raise it.
IMPORT_BUDGET = 7.5
RUNS = 9


def run_python(script: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)


def cpu_seconds(module: str) -> float:
    script = f"import time, {module}; print(time.process_time())"
    # Without bytecode this would measure the compiler.
    environment = {name: os.environ[name] for name in os.environ if name[:10] != "PYTHONDONT"}
    command = [sys.executable, "-c", script]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
    return float(result.stdout)


def test_importing_the_handler_costs_a_small_multiple_of_the_driver() -> None:
    """The minimum of several runs is compared, because other processes only add time."""
    handler_seconds, driver_seconds = [], []
    for _ in range(RUNS):
        handler_seconds.append(cpu_seconds("handler.main"))
        driver_seconds.append(cpu_seconds("asyncpg"))
    assert min(handler_seconds) <= IMPORT_BUDGET * min(driver_seconds), (
        min(handler_seconds),
        min(driver_seconds),
    )


def test_imports_only_needed_by_documentation_or_migrations_are_absent() -> None:
    script = "import sys, handler.main; print(*sys.modules)"
    result = run_python(script)
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
    assert "handler.main" in result.stdout.split(), result.stderr
    assert not {name.partition(".")[0] for name in result.stdout.split()} & unneeded
    assert "pydantic.v1" not in result.stdout.split()


def test_pydantic_1_can_still_be_imported() -> None:
    script = "import handler.main, pydantic.v1; print(pydantic.v1.BaseModel.__name__)"
    result = run_python(script)
    assert result.stdout == "BaseModel\n", result.stderr


def test_openapi_models_are_built_on_demand() -> None:
    script = (
        "import handler.main, handler.app, fastapi.openapi.models as models\n"
        "print(models.OpenAPI.__pydantic_complete__, handler.app.OrderOut.__pydantic_complete__)\n"
        "print(sorted(handler.app.app.openapi()['paths']))"
    )
    result = run_python(script)
    assert result.stdout.splitlines() == [
        "False True",
        "['/health', '/orders', '/orders/{order_id}', '/ready']",
    ], result.stderr


def test_garbage_collection_resumes_and_skips_imported_objects() -> None:
    script = "import gc, handler.main; print(gc.isenabled(), gc.get_freeze_count() > 50_000)"
    result = run_python(script)
    assert result.stdout.split() == ["True", "True"], result.stderr
