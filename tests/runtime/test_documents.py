"""Every command and every piece of code in the documents is run, in a copy of the project, or its
mark says what it needs or which test runs it.

A mark is a comment before the block: `needs an AWS account`, `needs Docker, tested by …`, `tested
by …` (files or folders that must hold the command's words), `exits with N` (its exit code) or
`printed by …` (what a command of the same document prints, but for its figures).
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import yaml

from handler.warm.database import engine
from infra.database.roles import APP, OWNER
from infra.local import ROOT, system_packages
from infra.local.server import free_port
from infra.local.setup import fingerprint
from infra.local.stack import DATABASE, Stack
from tests.conftest import reset_engine_cache
from tests.documents import documents
from tests.documents import name as path_name

DOCUMENTS = [path_name(path) for path in documents() if path.name != "CHANGELOG.md"]
MARKS = re.compile(
    r"needs an AWS account"
    r"|(?:needs Docker, )?tested by (?P<by>[\w./, ]+)"
    r"|exits with (?P<code>\d)"
    r"|printed by (?P<command>[\w ]+)"
)
KEPT_UP = "until Ctrl-C"


@dataclass(frozen=True)
class Block:
    document: str
    line: int
    language: str
    mark: str
    text: str

    def __str__(self) -> str:
        return f"{self.document}:{self.line}"

    def marked(self, name: str) -> str | None:
        found = MARKS.fullmatch(self.mark)
        return found[name] if found else None

    @property
    def commands(self) -> list[str]:
        """One a line, without what is said of it."""
        lines = (re.split(r"(?:^|\s)# ?", line)[0].strip() for line in self.text.splitlines())
        return [line for line in lines if line]


def blocks() -> Iterator[Block]:
    pattern = r"(?:^ *<!-- ([^\n]*) -->\n)?^( *)```(\w*)\n(.*?)^\2```$"
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for found in re.finditer(pattern, text, re.M | re.S):
            inner = re.sub(rf"^{found[2]}", "", found[4], flags=re.M)
            line = text.count("\n", 0, found.start()) + 1
            mark = "" if (found[1] or "").startswith("begin: ") else found[1] or ""
            yield Block(document, line, found[3], mark, inner)


BLOCKS = list(blocks())
RUN = [block for block in BLOCKS if block.language == "sh" and "by" not in block.mark.split()]
RUN = [block for block in RUN if "AWS" not in block.mark]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_is_of_a_kind_that_is_tried(block: Block) -> None:
    assert block.language in ("sh", "python", "sql", "mermaid", "yaml", "")
    assert block.language != "yaml" or yaml.safe_load(block.text)
    assert not block.mark or MARKS.fullmatch(block.mark), block.mark
    assert block.language or block.marked("command"), "what prints this?"


def recipe(target: str) -> str:
    makefile = (ROOT / "Makefile").read_text()
    found = re.search(rf"^{target}:.*##.*\n((?:\t.*\n)+)", makefile, re.M)
    assert found is not None, target
    return found[1].replace("$(COMPOSE)", "docker compose")


def holds(text: str, command: str) -> bool:
    """Whether a test's text has the words of `command`: as they are, or each as a string."""
    if command in text:
        return True
    words = shlex.split(command)
    variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
    if not all(re.search(rf"\b{each.partition('=')[0]}\b", text) for each in variables):
        return False
    words = [word for word in words if word not in variables]
    if words[0] == "make":
        if " ".join(words[:2]) in text:
            return True
        made = recipe(words[1])
        if module := re.search(r"\$\(RUN\) (\S+) (\w+)", made):
            return f'"{module[1]}", "{module[2]}"' in text
        words = next(line.split() for line in made.splitlines() if "docker compose" in line)
    if "compose" in words:
        verb = words[words.index("compose") + 1]
        return re.search(rf'["(]{verb}["(]', text) is not None
    return all(f'"{word}"' in text for word in words)


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.marked("by")], ids=str)
def test_what_another_test_runs_is_in_that_test(block: Block) -> None:
    named = [ROOT / name.strip() for name in str(block.marked("by")).split(",")]
    files = [file for name in named for file in (name.rglob("*.py") if name.is_dir() else [name])]
    text = "\n".join(file.read_text() for file in files)
    for command in block.commands:
        assert holds(text, command), command


# --- Run -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project as somebody cloned it, with this virtual environment as its own."""
    folder = tmp_path_factory.mktemp("clone") / "warm-engine"
    left_out = shutil.ignore_patterns(
        ".git", ".venv*", ".tools", ".site", ".stack", ".hypothesis", ".*_cache", "__pycache__"
    )
    shutil.copytree(ROOT, folder, ignore=left_out)
    if system_packages.TOOLS.exists():
        (folder / system_packages.TOOLS.name).symlink_to(system_packages.TOOLS)
    venv = folder / ".venv"
    venv.mkdir()
    for name in ("bin", "lib"):
        (venv / name).symlink_to(Path(sys.prefix) / name)
    shutil.copy(Path(sys.prefix) / "pyvenv.cfg", venv)
    for group in ("local", "reports", "tests"):
        (venv / f"ready-{group}").write_text(fingerprint(group))
    return folder


@contextmanager
def kept_up(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """`command` for the time of the block, then Ctrl-C."""
    with subprocess.Popen(
        ["bash", "-c", command],
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        output = ""
        try:
            while not output.endswith("make psql\n"):
                line = process.stdout.readline()
                assert line, output
                output += line
            yield
        finally:
            os.killpg(process.pid, signal.SIGINT)
            output += process.stdout.read()
        assert "nothing is left running" in output


def follow(block: Block, folder: Path) -> tuple[int, str]:
    """What a reader gets who types the block: the last exit code, and what was printed."""
    port = str(free_port())
    # As in a reader's shell, and not as under this `make test ARGS=…`.
    ours = re.compile("PYTEST|^MAKE|^MFLAGS$|^ARGS$")
    environment = {name: value for name, value in os.environ.items() if not ours.search(name)}
    environment |= {
        "PYTHON": sys.executable,
        "VENV": ".venv",
        "PORT": port,
        "COMPOSE_PROJECT_NAME": f"warm-engine-documents-{os.getpid()}",  # nobody's: make psql asks
    }
    if "make test" in block.text:  # every test runs by itself: that some are chosen is enough
        environment["PYTEST_ADDOPTS"] = "--collect-only"
    text = block.text.replace(":8000", f":{port}")
    lines = text.splitlines()
    up = [line for line in lines if KEPT_UP in line]
    script = "\n".join(["set -e", *(line for line in lines if line not in up)])
    if up:
        with kept_up(up[0], folder, environment):
            return shell(script, folder, environment)
    return shell(script, folder, environment)


def shell(script: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        input="SELECT 'there are ' || count(*) FROM orders;\n",  # typed at a prompt
        capture_output=True,
        text=True,
        timeout=200,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.timeout(240)
@pytest.mark.parametrize("block", RUN, ids=str)
def test_each_command_does_what_is_said(block: Block, copy: Path) -> None:
    if "curl " in block.text and shutil.which("curl") is None:
        pytest.skip("no curl here")
    code, printed = follow(block, copy)
    assert code == int(block.marked("code") or 0), printed
    assert "Traceback" not in printed
    if KEPT_UP in block.text:
        assert '{"id":1,"customer_name":"Amber Bakery","status":"pending"}' in printed
        assert "Order 1: Amber Bakery — pending" in printed
        assert "there are 1000" in printed
    for shown in BLOCKS:
        if shown.document == block.document and shown.marked("command") in block.commands:
            lines = {shape(line) for line in printed.splitlines()}
            for line in shown.text.splitlines():
                assert shape(line) in lines or line == "…", line


def shape(line: str) -> str:
    """A line but for its figures and its request's ids."""
    without_id = re.sub(r'(?<=Id": )"[^"]*"', "N", line)
    return " ".join(re.sub(r"\d[\d.]*", "N", without_id).split())


def test_a_command_that_is_broken_is_noticed(copy: Path) -> None:
    for broken in ("make demmo\n", "curl http://127.0.0.1:8000/orders/1\n", "make budget ARGS=x\n"):
        block = Block("here", 1, "sh", "", broken)
        assert follow(block, copy)[0] != 0, broken


# --- Code ----------------------------------------------------------------------------------------

PYTHON = [block for block in BLOCKS if block.language == "python"]


def module(block: Block) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102  # the project's own
    return names


@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_each_piece_of_code_works(block: Block) -> None:
    names = module(block)
    for name, function in names.items():
        if name.startswith("test_"):
            await function()


async def test_a_table_of_one_s_own_is_read_and_written_through_pgbouncer(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    [names] = [module(block) for block in PYTHON if "class Invoice" in block.text]
    admin = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
    await admin.execute(
        f"CREATE TABLE invoices (id integer PRIMARY KEY, total numeric(12, 2) NOT NULL);"
        f"ALTER TABLE invoices OWNER TO {OWNER}; GRANT SELECT, UPDATE ON invoices TO {APP};"
        f"INSERT INTO invoices VALUES (1, 10);"
        # In a transaction the update finds the lock that the reading took.
        f"CREATE FUNCTION locked() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f"  IF NOT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND"
        f"    relation = 'invoices'::regclass AND mode = 'RowShareLock')"
        f"  THEN RAISE 'not in one transaction'; END IF;"
        f"  RETURN NEW; END $$;"
        f"CREATE TRIGGER locked BEFORE UPDATE ON invoices FOR EACH ROW EXECUTE FUNCTION locked()"
    )
    for name, value in own_stack.environment().items():
        monkeypatch.setenv(name, value)
    reset_engine_cache()
    try:
        await names["discount"](1, names["Decimal"]("2.50"))
        assert (await names["find"](1)).total == names["Decimal"]("7.50")
        assert await names["find"](2) is None
    finally:
        await engine.dispose()
        await admin.close()


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "sql"], ids=str)
async def test_each_query_runs_as_the_administrator(block: Block, own_stack: Stack) -> None:
    admin = await asyncpg.connect(**own_stack.postgres.admin, database=DATABASE)
    await admin.execute(block.text)
    await admin.close()
