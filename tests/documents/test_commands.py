"""Every command and every example of code in the documents works.

Each runs in a copy of the project, unless a mark states what it needs or which test runs it. A mark
is a comment before the block:
- `needs an AWS account`
- `tested by …` or `needs Docker, tested by …`, with files or folders that contain the command
- `exits with N`, with the command's exit status
- `printed by …`, with a command of the same document that prints the block, except its figures
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

import pytest
import yaml

from handler.warm.database import engine
from infra.database.roles import APP, OWNER
from infra.local import ROOT, system_packages
from infra.local.server import free_port
from infra.local.setup import fingerprint
from infra.local.stack import Stack
from tests.conftest import PgConnection, reset_engine_cache
from tests.documents import documents
from tests.documents import name as path_name

DOCUMENTS = [path_name(path) for path in documents() if path.name != "CHANGELOG.md"]
MARK_PATTERN = re.compile(
    r"needs an AWS account"
    r"|(?:needs Docker, )?tested by (?P<by>[\w./, ]+)"
    r"|exits with (?P<code>\d)"
    r"|printed by (?P<command>[\w ]+)"
)
KEPT_RUNNING = "until Ctrl-C"


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
        """Return the part `name` of the mark, or None."""
        match = MARK_PATTERN.fullmatch(self.mark)
        return match[name] if match else None

    @property
    def commands(self) -> list[str]:
        """The commands of a shell block without their comments."""
        lines = (re.split(r"(?:^|\s)# ?", line)[0].strip() for line in self.text.splitlines())
        return [line for line in lines if line]


def blocks() -> Iterator[Block]:
    pattern = r"(?:^ *<!-- ([^\n]*) -->\n)?^( *)```(\w*)\n(.*?)^\2```$"
    for document in DOCUMENTS:
        text = (ROOT / document).read_text()
        for match in re.finditer(pattern, text, re.M | re.S):
            content = re.sub(rf"^{match[2]}", "", match[4], flags=re.M)
            line = text.count("\n", 0, match.start()) + 1
            mark = "" if (match[1] or "").startswith("begin: ") else match[1] or ""
            yield Block(document, line, match[3], mark, content)


BLOCKS = list(blocks())
RUNNABLE = [block for block in BLOCKS if block.language == "sh" and "by" not in block.mark.split()]
RUNNABLE = [block for block in RUNNABLE if "AWS" not in block.mark]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_each_block_has_a_known_language_and_a_valid_mark(block: Block) -> None:
    assert block.language in ("sh", "python", "sql", "mermaid", "yaml", "diff", "")
    assert block.language != "yaml" or yaml.safe_load(block.text)
    assert not block.mark or MARK_PATTERN.fullmatch(block.mark), block.mark
    assert block.language or block.marked("command"), "the mark must name what prints this"


def recipe(target: str) -> str:
    makefile = (ROOT / "Makefile").read_text()
    match = re.search(rf"^{target}:.*##.*\n((?:\t.*\n)+)", makefile, re.M)
    assert match is not None, target
    return match[1].replace("$(COMPOSE)", "docker compose")


def contains_command(text: str, command: str) -> bool:
    """Return whether a test's text contains `command`, literally or as separate strings."""
    if command in text:
        return True
    words = shlex.split(command)
    variables = [word for word in words if re.match(r"[A-Z_]+=", word)]
    if not all(re.search(rf"\b{variable.partition('=')[0]}\b", text) for variable in variables):
        return False
    words = [word for word in words if word not in variables]
    if words[0] == "make":
        if " ".join(words[:2]) in text:
            return True
        target_recipe = recipe(words[1])
        if lab_command := re.search(r"\$\(RUN\) (\S+) (\w+)", target_recipe):
            return f'"{lab_command[1]}", "{lab_command[2]}"' in text
        words = next(
            line.split() for line in target_recipe.splitlines() if "docker compose" in line
        )
    if "compose" in words:
        verb = words[words.index("compose") + 1]
        return re.search(rf'["(]{verb}["(]', text) is not None
    return all(f'"{word}"' in text for word in words)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.marked("by")], ids=str)
def test_a_command_marked_as_tested_is_in_the_named_test(block: Block) -> None:
    paths = [ROOT / name.strip() for name in str(block.marked("by")).split(",")]
    files = [file for path in paths for file in (path.rglob("*.py") if path.is_dir() else [path])]
    text = "\n".join(file.read_text() for file in files)
    for command in block.commands:
        assert contains_command(text, command), command


# --- Commands ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Copy the project as a clone would be, with this virtual environment as its own."""
    folder = tmp_path_factory.mktemp("clone") / "warm-engine"
    ignored = shutil.ignore_patterns(
        ".git", ".venv*", ".tools", ".site", ".stack", ".hypothesis", ".*_cache", "__pycache__"
    )
    shutil.copytree(ROOT, folder, ignore=ignored)
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
def running(command: str, folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Run `command` for the duration of the block, and end it with Ctrl-C."""
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


def run_block(block: Block, folder: Path) -> tuple[int, str]:
    """Run the block as a reader would; return the last exit status and the output."""
    port = str(free_port())
    # A reader's shell has no variables of this `make test ARGS=…`.
    of_this_run = re.compile("PYTEST|^MAKE|^MFLAGS$|^ARGS$")
    environment = {
        name: value for name, value in os.environ.items() if not of_this_run.search(name)
    }
    environment |= {
        "PYTHON": sys.executable,
        "VENV": ".venv",
        "PORT": port,
        # `make psql` asks for this project, which must not exist.
        "COMPOSE_PROJECT_NAME": f"warm-engine-documents-{os.getpid()}",
    }
    if "make test" in block.text:  # collecting the tests proves that the command works
        environment["PYTEST_ADDOPTS"] = "--collect-only"
    lines = block.text.replace(":8000", f":{port}").splitlines()
    kept_running = [line for line in lines if KEPT_RUNNING in line]
    script = "\n".join(["set -e", *(line for line in lines if line not in kept_running)])
    if kept_running:
        with running(kept_running[0], folder, environment):
            return shell(script, folder, environment)
    return shell(script, folder, environment)


def shell(script: str, folder: Path, environment: dict[str, str]) -> tuple[int, str]:
    process = subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env=environment,
        input="SELECT 'there are ' || count(*) FROM orders;\n",  # typed at a prompt
        capture_output=True,
        text=True,
        timeout=200,
    )
    return process.returncode, process.stdout + process.stderr


@pytest.mark.timeout(240)
@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_each_command_works_as_documented(block: Block, clone: Path) -> None:
    if "curl " in block.text and shutil.which("curl") is None:
        pytest.skip("no curl here")
    status, output = run_block(block, clone)
    assert status == int(block.marked("code") or 0), output
    assert "Traceback" not in output
    if KEPT_RUNNING in block.text:
        assert '{"id":1,"customer_name":"Amber Bakery","status":"pending"}' in output
        assert "Order 1: Amber Bakery — pending" in output
        assert "there are 1000" in output
    lines = {without_figures(line) for line in output.splitlines()}
    for other in BLOCKS:
        if other.document == block.document and other.marked("command") in block.commands:
            for line in other.text.splitlines():
                assert without_figures(line) in lines or line == "…", line


def without_figures(line: str) -> str:
    """Return a line without its figures and request ids."""
    without_id = re.sub(r'(?<=Id": )"[^"]*"', "N", line)
    return " ".join(re.sub(r"\d[\d.]*", "N", without_id).split())


def test_a_broken_command_is_noticed(clone: Path) -> None:
    for command in ("make demmo", "curl http://127.0.0.1:8000/orders/1", "make budget ARGS=x"):
        assert run_block(Block("here", 1, "sh", "", f"{command}\n"), clone)[0] != 0, command


# --- Code ----------------------------------------------------------------------------------------

PYTHON = [block for block in BLOCKS if block.language == "python"]


def execute_example(block: Block) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "example"}
    exec(compile(block.text, str(block), "exec"), names)  # noqa: S102  # the project's own
    return names


@pytest.mark.parametrize("block", PYTHON, ids=str)
async def test_each_code_example_works(block: Block) -> None:
    for name, function in execute_example(block).items():
        if name.startswith("test_"):
            await function()


async def test_the_example_with_its_own_table_works_through_pgbouncer(
    own_stack: Stack, monkeypatch: pytest.MonkeyPatch, own_admin: PgConnection
) -> None:
    [names] = [execute_example(block) for block in PYTHON if "class Invoice" in block.text]
    await own_admin.execute(
        f"CREATE TABLE invoices (id integer PRIMARY KEY, total numeric(12, 2) NOT NULL);"
        f"ALTER TABLE invoices OWNER TO {OWNER}; GRANT SELECT, UPDATE ON invoices TO {APP};"
        f"INSERT INTO invoices VALUES (1, 10);"
        # Within one transaction, the update finds the lock that the read acquired.
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


SQL = [block for block in BLOCKS if block.language == "sql"]


@pytest.mark.parametrize("block", SQL, ids=str)
async def test_each_query_runs_as_the_administrator(block: Block, own_admin: PgConnection) -> None:
    await own_admin.execute(block.text)
