"""What cannot be examined is refused in one line; nothing is left, and no report is written."""

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
    """A folder for all that is temporary. Unlike pytest's, the servers' account may enter it."""
    with tempfile.TemporaryDirectory(prefix="examined-") as name:
        Path(name).chmod(0o711)
        yield Path(name)


def refusal(scratch: Path, **variables: str) -> str:
    """The last line on stderr and stdout, of an examination that is refused."""
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
    started = [each for each in psutil.process_iter(["cmdline"]) if _belongs(each, scratch)]
    assert not [each for each in started if is_running(each)]
    assert not list(scratch.glob("warm-engine-*"))
    assert "Traceback" not in output
    return str(output.strip().splitlines()[-1])


def _belongs(process: psutil.Process, folder: Path) -> bool:
    return process.pid != os.getpid() and str(folder) in " ".join(process.info["cmdline"] or ())


@pytest.mark.parametrize(
    ("handler", "words"),
    [
        ("no.such.handler", "does not serve the event: Runtime.ImportModuleError: .*'no'"),
        (f"{SERVICES}.without_database", "opened no connection to Postgres"),
        (f"{SERVICES}.dying", "exit status 3. The last line of its log: out of luck"),
        (f"{SERVICES}.hanging", "Task timed out after 10.00 seconds"),
        (f"{SERVICES}.flooding", "Task timed out after 10.00 seconds"),
        (f"{SERVICES}.asking_aws", "ConnectionError: Could not connect to .*ssm"),
    ],
)
def test_a_function_that_does_not_serve_is_named_with_its_error(
    handler: str, words: str, scratch: Path
) -> None:
    line = refusal(scratch, HANDLER=handler)
    assert line.startswith(f"warm-engine: {handler} ")
    assert re.search(words, line), line


def test_a_schema_that_fails_is_refused_with_postgres_words(scratch: Path) -> None:
    schema = scratch / "schema.sql"
    schema.write_text("CREATE TABLE a (b nonsense)")
    line = refusal(scratch, SCHEMA=str(schema))
    assert line == f'warm-engine: SCHEMA {schema} failed: type "nonsense" does not exist'


def test_an_event_that_is_not_json_is_refused(scratch: Path) -> None:
    event = scratch / "event.json"
    event.write_text("{")
    assert refusal(scratch, EVENT=str(event)).startswith(f"warm-engine: EVENT: {event} is not JSON")
