"""`make status` shows the cause of an incident, and `make console` opens PgBouncer's console."""

import argparse
import asyncio
import io
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import asyncpg
import pytest

from infra.local import ROOT, commands, stack, status
from infra.local.stack import DATABASE, Stack
from tests import incidents

OPERATIONS = (ROOT / "docs/operations.md").read_text()
Status = Callable[..., tuple[int, str]]


@pytest.fixture
def run_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Status:
    """Return a function that runs `infra.local status` or another command, without Docker.

    No stack is published at first.
    """
    monkeypatch.setattr(stack, "ENDPOINTS", tmp_path / "endpoints.json")
    monkeypatch.setenv("PATH", str(tmp_path))

    def run(*arguments: str, command: str = "status", stdin_text: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["infra.local", command, *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin_text))
        code = commands.main()
        output = capsys.readouterr()
        return code, output.out + output.err

    return run


@pytest.fixture
def published(own_stack: Stack, run_command: Status) -> Iterator[Stack]:
    """Publish a stack that `run_command` finds."""
    with own_stack.published(stack.ENDPOINTS) as is_published:
        assert is_published
        yield own_stack


def install_fake_docker(folder: Path, is_up: bool) -> Path:
    """Install a `docker` that records its arguments, and return the path of that record."""
    log = folder / "docker-arguments"
    listing = 'case "$*" in *" ps "*) echo abc;; esac\n' if is_up else ""
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\necho "$*" >> {log}\n{listing}')
    program.chmod(0o755)
    return log


def test_a_missing_stack_is_reported_with_the_commands_that_start_one(run_command: Status) -> None:
    code, output = run_command()
    assert (code, output) == (
        1,
        "warm-engine: no stack is up. Start one in another terminal: make run, or make up\n",
    )


def test_the_user_must_choose_one_of_two_stacks(
    published: Stack, run_command: Status, tmp_path: Path
) -> None:
    log = install_fake_docker(tmp_path, is_up=True)
    code, output = run_command()
    assert code == 1
    assert output == (
        "warm-engine: two stacks are up. Choose one: make status STACK=run, or STACK=up\n"
    )
    code, output = run_command("--stack", "run")
    assert code == 0
    assert output.startswith("make run, ")
    code, output = run_command("--stack", "up")
    assert log.read_text().splitlines()[-1] == "compose run --rm --no-deps -T churn status"
    code, output = run_command("--stack", "up", command="console")
    assert log.read_text().splitlines()[-1] == "compose run --rm --no-deps -T churn console"


def test_the_other_stack_is_shown_when_compose_is_down(
    published: Stack, run_command: Status, tmp_path: Path
) -> None:
    install_fake_docker(tmp_path, is_up=False)
    code, output = run_command()
    assert code == 0, output
    assert re.search(r"^Postgres +all +\d+ of 20 +connections;", output, re.M), output


@pytest.mark.parametrize("unresponsive", ["pgbouncer", "postgres"])
def test_an_unresponsive_server_is_reported_and_the_other_shown(
    published: Stack, run_command: Status, unresponsive: str
) -> None:
    server = getattr(published, unresponsive)
    process = server.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        code, output = run_command()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert code == 1
    assert f"{server.name} did not respond within 3 s" in output
    other = r"^Postgres +all" if unresponsive == "pgbouncer" else r"^PgBouncer +all"
    assert re.search(other, output, re.M), output


def test_a_stopped_server_is_reported(published: Stack, run_command: Status) -> None:
    published.pgbouncer.stop()
    code, output = run_command()
    assert code == 1
    assert re.search("^PgBouncer does not respond: .*refused", output, re.M), output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("command", "state", "undo"),
    [
        ("PAUSE storefront", "PAUSED", "RESUME storefront"),
        ("KILL storefront", "PAUSED", "RESUME storefront"),
        ("DISABLE storefront", "DISABLED", "ENABLE storefront"),
    ],
    ids=["pause", "kill", "disable"],
)
def test_a_paused_or_disabled_database_is_shown_with_the_command_that_undoes_it(
    published: Stack, run_command: Status, command: str, state: str, undo: str
) -> None:
    with published.pgbouncer.console() as console:
        console.execute(command)
        _, output = run_command()
        assert re.search(rf"^PgBouncer +storefront +{state} +{undo}$", output, re.M), output
        assert causes(output) == {"a database is paused or disabled in PgBouncer"}
        console.execute(undo)
        _, output = run_command()
        assert causes(output) == set()


async def test_control_characters_in_an_application_name_and_a_statement_are_escaped(
    published: Stack,
) -> None:
    text_with_control_characters = "x\x1b[2J\nPostgres  all"
    session = await asyncpg.connect(**published.postgres.admin, database=DATABASE)
    await session.execute(f"SET application_name = '{text_with_control_characters}'")
    await session.execute(f"SELECT '{text_with_control_characters}'")
    try:
        target = status.native()
        assert target is not None
        output, _ = await status._table(target)
    finally:
        session.terminate()
    assert "\x1b" not in output
    assert len(re.findall(r"^Postgres  all", output, re.M)) == 0


def test_a_narrow_terminal_shows_the_details_on_a_line_of_their_own() -> None:
    details = "from 127.0.0.1:36862 BLOCKS 4; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"
    row = ("direct", "postgres, report, pid 3032", "idle in transaction", "1", "2.0", details)
    lines = status._formatted([row], 80)
    assert f"  {details}" in lines
    assert max(map(len, lines)) <= 80
    assert details in status._formatted([row], 160)[1]


# --- PgBouncer's console -------------------------------------------------------------------------


def test_the_console_executes_commands(published: Stack, run_command: Status) -> None:
    lines = "SHOW VERSION;\n\nSHOW HELP\nRECONNECT storefront\nKILL storefront\nSHOW DATABASES\n"
    lines += "RESUME storefront\n\\q\nnonsense\n"
    code, output = run_command(command="console", stdin_text=lines)
    assert code == 0, output
    assert f"PgBouncer {'.'.join(map(str, published.pgbouncer.program.version))}" in output
    assert "SHOW HELP|CONFIG|" in output
    assert output.splitlines()[-1] == "RESUME"
    assert re.search(r"^name +host ", output, re.M), output
    assert re.search(r"^storefront +127\.0\.0\.1 ", output, re.M), output


def test_the_console_reports_an_error_and_continues(published: Stack, run_command: Status) -> None:
    code, output = run_command(command="console", stdin_text="nonsense\nSHOW VERSION\n")
    assert code == 1
    assert "invalid command 'nonsense'" in output
    assert "PgBouncer 1." in output


def test_a_console_that_cannot_connect_is_reported(published: Stack, run_command: Status) -> None:
    published.pgbouncer.stop()
    code, output = run_command(command="console", stdin_text="SHOW VERSION\n")
    assert code == 1
    assert re.fullmatch("warm-engine: PgBouncer does not respond: .*refused.*\n", output, re.I), (
        output
    )


# --- Incidents -----------------------------------------------------------------------------------

EXAMPLE = re.findall(r"<!-- printed by make status -->\n```\n(.*?)```", OPERATIONS, re.S)[0]
#: Maps the documented patterns of lines to the documented causes.
CAUSES = dict(re.findall(r"^\| `\^(.+?)` \| \*\*(.+?)\*\*", OPERATIONS.replace("\\|", "|"), re.M))


def causes(table: str) -> set[str]:
    patterns = [pattern for pattern in CAUSES if re.search(f"^{pattern}", table, re.M)]
    return {CAUSES[pattern] for pattern in patterns}


async def causes_of(target: status.Target) -> set[str]:
    return causes((await status._table(target))[0])


def test_the_documented_example_leads_to_the_documented_verdict() -> None:
    assert causes(EXAMPLE) == {"a transaction was left open"}


def test_the_document_explains_every_kind_of_line() -> None:
    table = OPERATIONS.partition("| `where` |")[2].partition("\n\n")[0]
    kinds = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    example_kinds = {line.split()[0] for line in EXAMPLE.splitlines()[3:] if line != "…"}
    assert example_kinds == kinds


def lines_without_figures(table: str) -> set[str]:
    """Return the lines of a table without their figures and repeated spaces."""
    return {" ".join(re.sub(r"\d[\d.:]*", "N", line).split()) for line in table.splitlines()}


def test_an_incident_is_chosen_by_number_or_name_and_the_help_names_no_cause() -> None:
    by_number = [incidents.chosen_incident(number) for number in "123"]
    assert by_number == list(incidents.INCIDENTS.values())
    assert incidents.chosen_incident("straight") is incidents.bypass_pgbouncer
    with pytest.raises(argparse.ArgumentTypeError, match="'4' is not 1, 2 or 3"):
        incidents.chosen_incident("4")
    assert not [name for name in incidents.INCIDENTS if name in incidents.HELP]


@pytest.mark.parametrize(
    ("name", "cause", "line"),
    [
        (
            "leaked-transaction",
            "a transaction was left open",
            r"direct +postgres, report, pid \d+ +idle in transaction +1 ",
        ),
        (
            "pooler-full",
            "PgBouncer has no free client slot",
            r"client +appuser, dashboard +idle +30 .* from 127\.0\.0\.1$",
        ),
        (
            "straight",
            "an application connects without PgBouncer",
            r"role +appuser +FULL, 13 of 13 ",
        ),
    ],
    ids=list(incidents.INCIDENTS),
)
async def test_the_document_leads_from_the_status_to_the_cause(
    published: Stack, name: str, cause: str, line: str
) -> None:
    target = status.native()
    assert target is not None
    assert await causes_of(target) == set()
    async with incidents.INCIDENTS[name](published):
        output, _ = await status._table(target)
        if name == "pooler-full":
            # This command's own connection is not counted, but a client that is being rejected is
            # counted for a moment.
            async with asyncio.timeout(30):
                while not re.search(r"^PgBouncer +all +FULL, 30 of 30 ", output, re.M):
                    output, _ = await status._table(target)
        assert causes(output) == {cause}, output
        assert re.search(f"^{line}", output, re.M), output
        if causes(EXAMPLE) == {cause}:
            assert lines_without_figures(EXAMPLE) - {"…"} <= lines_without_figures(output)
    async with asyncio.timeout(30):
        # PgBouncer may still be closing clients.
        while await causes_of(target):
            await asyncio.sleep(0.1)
