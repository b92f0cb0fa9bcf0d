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
def make_status(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Status:
    """Run `make status` or another command where no stack is published and Docker is absent."""
    monkeypatch.setattr(stack, "ENDPOINTS", tmp_path / "endpoints.json")
    monkeypatch.setenv("PATH", str(tmp_path))

    def run(*words: str, command: str = "status", typed: str = "") -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["infra.local", command, *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(typed))
        code = commands.main()
        printed = capsys.readouterr()
        return code, printed.out + printed.err

    return run


@pytest.fixture
def published(own_stack: Stack, make_status: Status) -> Iterator[Stack]:
    """Publish a stack that `make_status` finds."""
    with own_stack.published(stack.ENDPOINTS) as is_published:
        assert is_published
        yield own_stack


def docker(folder: Path, up: bool) -> Path:
    """Put a fake `docker` on the PATH that records its arguments."""
    log = folder / "told"
    answer = 'case "$*" in *" ps "*) echo abc;; esac\n' if up else ""
    program = folder / "docker"
    program.write_text(f'#!/bin/sh\necho "$*" >> {log}\n{answer}')
    program.chmod(0o755)
    return log


def test_without_a_stack_the_hint_says_how_to_start_one(make_status: Status) -> None:
    code, text = make_status()
    assert (code, text) == (
        1,
        "warm-engine: no stack is up. Start one in another terminal: make run, or make up\n",
    )


def test_with_two_stacks_the_user_must_choose_one(
    published: Stack, make_status: Status, tmp_path: Path
) -> None:
    log = docker(tmp_path, up=True)
    code, text = make_status()
    assert code == 1
    assert text == (
        "warm-engine: two stacks are up. Choose one: make status STACK=run, or STACK=up\n"
    )
    code, text = make_status("--stack", "run")
    assert code == 0
    assert text.startswith("make run, ")
    code, text = make_status("--stack", "up")
    assert log.read_text().splitlines()[-1] == "compose run --rm --no-deps -T churn status"
    code, text = make_status("--stack", "up", command="console")
    assert log.read_text().splitlines()[-1] == "compose run --rm --no-deps -T churn console"


def test_with_compose_down_the_other_stack_is_shown(
    published: Stack, make_status: Status, tmp_path: Path
) -> None:
    docker(tmp_path, up=False)
    code, text = make_status()
    assert code == 0, text
    assert re.search(r"^Postgres +all +\d+ of 20 +connections;", text, re.M), text


@pytest.mark.parametrize("silent", ["pgbouncer", "postgres"])
def test_an_unresponsive_server_is_reported_and_the_other_shown(
    published: Stack, make_status: Status, silent: str
) -> None:
    server = getattr(published, silent)
    process = server.process
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        code, text = make_status()
    finally:
        os.kill(process.pid, signal.SIGCONT)
    assert code == 1
    assert f"{server.name} does not respond within 3 s" in text
    other = r"^Postgres +all" if silent == "pgbouncer" else r"^PgBouncer +all"
    assert re.search(other, text, re.M), text


def test_a_stopped_server_is_reported(published: Stack, make_status: Status) -> None:
    published.pgbouncer.stop()
    code, text = make_status()
    assert code == 1
    assert re.search("^PgBouncer does not respond: .*refused", text, re.M), text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("command", "line", "undo"),
    [
        ("PAUSE storefront", "PAUSED", "RESUME storefront"),
        ("KILL storefront", "PAUSED", "RESUME storefront"),
        ("DISABLE storefront", "DISABLED", "ENABLE storefront"),
    ],
    ids=["pause", "kill", "disable"],
)
def test_a_paused_or_disabled_database_is_shown_with_the_command_that_undoes_it(
    published: Stack, make_status: Status, command: str, line: str, undo: str
) -> None:
    with published.pgbouncer.console() as console:
        console.execute(command)
        _, text = make_status()
        assert re.search(rf"^PgBouncer +storefront +{line} +{undo}$", text, re.M), text
        assert causes(text) == {"a database is paused or disabled in PgBouncer"}
        console.execute(undo)
        _, text = make_status()
        assert causes(text) == set()


async def test_control_characters_in_an_application_name_are_escaped(published: Stack) -> None:
    hostile = "x\x1b[2J\nPostgres  all"
    session = await asyncpg.connect(**published.postgres.admin, database=DATABASE)
    await session.execute(f"SELECT '{hostile}'")
    try:
        target = status.native()
        assert target is not None
        text, _ = await status._table(target)
    finally:
        session.terminate()
    assert "\x1b" not in text
    assert len(re.findall(r"^Postgres  all", text, re.M)) == 0


def test_a_narrow_terminal_shows_blocked_clients_too() -> None:
    what = "from 127.0.0.1:36862 BLOCKS 4; LOCK TABLE orders IN ACCESS EXCLUSIVE MODE"
    row = ("direct", "postgres, report, pid 3032", "idle in transaction", "1", "2.0", what)
    lines = status._formatted([row], 80)
    assert f"  {what}" in lines
    assert max(map(len, lines)) <= 80
    assert what in status._formatted([row], 160)[1]


# --- PgBouncer's console -------------------------------------------------------------------------


def test_the_console_executes_commands(published: Stack, make_status: Status) -> None:
    typed = "SHOW VERSION;\n\nSHOW HELP\nRECONNECT storefront\nKILL storefront\nSHOW DATABASES\n"
    code, text = make_status(command="console", typed=typed + "RESUME storefront\n\\q\nnonsense\n")
    assert code == 0, text
    assert f"PgBouncer {'.'.join(map(str, published.pgbouncer.program.version))}" in text
    assert "SHOW HELP|CONFIG|" in text
    assert text.splitlines()[-1] == "RESUME"
    assert re.search(r"^name +host ", text, re.M), text
    assert re.search(r"^storefront +127\.0\.0\.1 ", text, re.M), text


def test_the_console_reports_an_error_and_continues(published: Stack, make_status: Status) -> None:
    code, text = make_status(command="console", typed="nonsense\nSHOW VERSION\n")
    assert code == 1
    assert "invalid command 'nonsense'" in text
    assert "PgBouncer 1." in text


def test_a_lost_console_connection_is_reported(published: Stack, make_status: Status) -> None:
    published.pgbouncer.stop()
    code, text = make_status(command="console", typed="SHOW VERSION\n")
    assert code == 1
    assert re.fullmatch("warm-engine: PgBouncer does not respond: .*refused.*\n", text, re.I), text


# --- Incidents: each row of the document's table has a pattern -----------------------------------

EXAMPLE = re.findall(r"<!-- printed by make status -->\n```\n(.*?)```", OPERATIONS, re.S)[0]
#: Pattern for a line → cause, as documented.
SIGNS = dict(re.findall(r"^\| `\^(.+?)` \| \*\*(.+?)\*\*", OPERATIONS.replace("\\|", "|"), re.M))


def causes(table: str) -> set[str]:
    return {culprit for sign, culprit in SIGNS.items() if re.search(f"^{sign}", table, re.M)}


async def signs_shown(target: status.Target) -> set[str]:
    return causes((await status._table(target))[0])


def test_the_documented_example_leads_to_the_documented_verdict() -> None:
    assert causes(EXAMPLE) == {"a transaction was left open"}


def test_the_document_explains_every_kind_of_line() -> None:
    table = OPERATIONS.partition("| `where` |")[2].partition("\n\n")[0]
    kinds = set(re.findall(r"^\| `(\w+)` \|", table, re.M))
    shown = {line.split()[0] for line in EXAMPLE.splitlines()[3:] if line != "…"}
    assert shown == kinds


def shapes(table: str) -> set[str]:
    """Return the lines without digits and spaces."""
    return {" ".join(re.sub(r"\d[\d.:]*", "N", line).split()) for line in table.splitlines()}


def test_an_incident_is_chosen_by_number_or_name_and_the_help_names_no_cause() -> None:
    assert [incidents.chosen_incident(each) for each in "123"] == list(incidents.INCIDENTS.values())
    assert incidents.chosen_incident("straight") is incidents.bypass_pgbouncer
    with pytest.raises(argparse.ArgumentTypeError, match="'4' is not 1, 2 or 3"):
        incidents.chosen_incident("4")
    assert not [name for name in incidents.INCIDENTS if name in incidents.HELP]


@pytest.mark.parametrize(
    ("name", "culprit", "line"),
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
async def test_the_document_leads_from_the_table_to_the_cause(
    published: Stack, name: str, culprit: str, line: str
) -> None:
    target = status.native()
    assert target is not None
    assert await signs_shown(target) == set()
    async with incidents.INCIDENTS[name](published):
        text, _ = await status._table(target)
        if name == "pooler-full":
            # Not 31: this command's own connection is not counted. A client that is being refused
            # is counted for a moment.
            async with asyncio.timeout(10):
                while not re.search(r"^PgBouncer +all +FULL, 30 of 30 ", text, re.M):
                    text, _ = await status._table(target)
        assert causes(text) == {culprit}, text
        assert re.search(f"^{line}", text, re.M), text
        if causes(EXAMPLE) == {culprit}:
            assert shapes(EXAMPLE) - {"…"} <= shapes(text)
    async with asyncio.timeout(10):
        # PgBouncer may still be closing clients.
        while await signs_shown(target):
            await asyncio.sleep(0.1)
