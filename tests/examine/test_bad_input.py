"""`make examine` rejects bad input in one line, and leaves no process, file or report."""

import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from infra.local import ROOT
from tests.conftest import command
from tests.processes import is_running

SERVICES = "tests.examine.services"


@pytest.fixture
def scratch() -> Iterator[Path]:
    """Create a folder for temporary files that, unlike pytest's, the servers' account may enter."""
    with tempfile.TemporaryDirectory(prefix="examined-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def rejection(scratch: Path, **variables: str) -> str:
    """Run an examination that is rejected and return the last line of its output."""
    report = ROOT / "reports/examine.json"
    before = report.stat().st_mtime_ns if report.exists() else None
    environment = {"TMPDIR": str(scratch), "ONLY": "memory", **variables}
    process = command("-m", "infra.local", "examine", env=environment)
    try:
        output, _ = process.communicate(timeout=100)
    except BaseException:
        process.terminate()
        process.communicate()
        raise
    assert process.returncode == 1, output
    after = report.stat().st_mtime_ns if report.exists() else None
    assert after == before
    processes = [
        process for process in psutil.process_iter(["cmdline"]) if _belongs(process, scratch)
    ]
    assert not [process for process in processes if is_running(process)]
    assert not list(scratch.glob("warm-engine-*"))
    assert "Traceback" not in output
    return str(output.strip().splitlines()[-1])


def _belongs(process: psutil.Process, folder: Path) -> bool:
    return process.pid != os.getpid() and str(folder) in " ".join(process.info["cmdline"] or ())


@pytest.mark.parametrize(
    ("handler", "message"),
    [
        ("no.such.handler", "does not serve the event: Runtime.ImportModuleError: .*'no'"),
        (f"{SERVICES}.without_database", "opened no connection to Postgres"),
        (f"{SERVICES}.dying", "exit status 3. The last line of its log: out of luck"),
        (f"{SERVICES}.hanging", "Task timed out after 10.00 seconds"),
        (f"{SERVICES}.flooding", "Task timed out after 10.00 seconds"),
        (f"{SERVICES}.asking_aws", "ConnectionError: Could not connect to .*ssm"),
    ],
)
def test_a_function_that_cannot_be_examined_is_named_with_its_error(
    handler: str, message: str, scratch: Path
) -> None:
    line = rejection(scratch, HANDLER=handler)
    assert line.startswith(f"warm-engine: {handler} ")
    assert re.search(message, line), line


def test_a_schema_that_fails_is_rejected_with_the_error_of_postgres(scratch: Path) -> None:
    schema = scratch / "schema.sql"
    schema.write_text("CREATE TABLE a (b nonsense)")
    line = rejection(scratch, SCHEMA=str(schema))
    assert line == f'warm-engine: SCHEMA {schema} failed: type "nonsense" does not exist'


def test_an_event_that_is_not_json_is_rejected(scratch: Path) -> None:
    event = scratch / "event.json"
    event.write_text("{")
    assert rejection(scratch, EVENT=str(event)).startswith(
        f"warm-engine: EVENT: {event} is not JSON"
    )
