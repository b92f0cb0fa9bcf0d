"""`make machines`: run the README's commands on bare Debian machines, each in a container.

A machine is a Debian image with python3, make, git and CA certificates, and the packages of its row
in `MACHINES`. The project is cloned, and `make doctor`, `make demo`, `make psql` and `make test`
run in the clone; no process may be left running. The variable `MACHINES="trixie forky"` selects
machines. `TESTS=selection` runs only `SELECTION`, and `TESTS=all` runs all tests, except on a
machine with its own `tests`. Results go to reports/machines.json and docs/support.md.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from infra.local import ROOT, doctor
from infra.local.signals import treat_sigterm_as_sigint

REPORT = ROOT / "reports/machines.json"
DOCUMENT = ROOT / "docs/support.md"
#: Tests of what differs between machines: setup, commands, server versions.
SELECTION = (
    "tests/unit/test_settings.py tests/runtime/test_setup.py tests/runtime/test_command_line.py "
    "tests/runtime/test_shutdown.py tests/integration/test_stack.py "
    "tests/integration/test_session_state.py tests/integration/test_rejections.py"
)
SERVER_TESTS = "tests/integration tests/faults"
TABLE_HEAD = """\
| machine | user | Python | PgBouncer | Postgres | `make demo` | `make psql` | tests | which tests |
|---|---|---|---|---|---|---|---|---|
"""
BEGIN, END = "<!-- begin: make machines -->\n", "<!-- end: make machines -->\n"


@dataclass(frozen=True)
class Machine:
    """A Debian release with additional packages, and what runs on it."""

    suite: str
    user: str = "user"
    #: Debian packages in addition to those of every machine.
    packages: str = ""
    #: Variables for make.
    variables: str = ""
    #: The tests to run; if empty, those that TESTS selects.
    tests: str = ""

    @property
    def image(self) -> str:
        return f"debian:{self.suite}-slim"

    @property
    def dockerfile(self) -> str:
        return (
            f"FROM {self.image}\n"
            # Otherwise Debian's package creates a cluster when a server is installed.
            "RUN mkdir -p /etc/postgresql-common"
            " && echo create_main_cluster=false >/etc/postgresql-common/createcluster.conf"
            " && apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes"
            f" --no-install-recommends python3 make git ca-certificates {self.packages}"
            # The cloned repository is owned by a user of the host.
            " && useradd --create-home user && git config --system safe.directory '*'\n"
        )


MACHINES = {
    "bookworm": Machine("bookworm"),
    "trixie": Machine("trixie"),
    "forky": Machine("forky"),
    "forky-3.15": Machine("forky", packages="python3.15", variables="PYTHON=python3.15"),
    "trixie-postgres-17": Machine(
        "trixie",
        packages="postgresql-17",
        variables="POSTGRES=/usr/lib/postgresql/17/bin",
        tests=SERVER_TESTS,
    ),
    "bookworm-root": Machine("bookworm", "root"),
    "trixie-root": Machine("trixie", "root"),
    "forky-root": Machine("forky", "root"),
    "forky-3.15-root": Machine(
        "forky", "root", packages="python3.15", variables="PYTHON=python3.15"
    ),
}


class Container:
    """A running machine, with the project cloned into a folder whose name contains a space."""

    def __init__(self, name: str, machine: Machine) -> None:
        self.name = name
        self.folder = f"{'/root' if machine.user == 'root' else '/home/user'}/warm engine"

    def call(self, *words: str) -> "subprocess.CompletedProcess[str]":
        """Run a command, print its output and return the completed process."""
        process = subprocess.run(
            ["docker", "exec", "--interactive", "--workdir", self.folder, self.name, *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        print(process.stdout, flush=True)
        return process

    def processes(self) -> list[str]:
        """List the remaining processes except the container's own."""
        top = subprocess.run(
            ["docker", "top", self.name, "-eo", "pid,args"],
            capture_output=True,
            text=True,
            check=True,
        )
        return [line for line in top.stdout.splitlines()[1:] if "sleep infinity" not in line]


@contextmanager
def running(machine: Machine, source: Path) -> Iterator[Container]:
    image = subprocess.run(
        ["docker", "build", "--quiet", "-"],
        input=machine.dockerfile,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout.strip()
    name = f"warm-engine-machine-{os.getpid()}"
    words = ["--detach", "--rm", "--init", "--name", name, "--user", machine.user]
    words += ["--volume", f"{source}:/source.git:ro", "--env", "LC_ALL=C.UTF-8"]
    run = ["docker", "run", *words, image, "sleep", "infinity"]
    subprocess.run(run, stdout=subprocess.DEVNULL, check=True)
    try:
        container = Container(name, machine)
        clone = ["git", "clone", "--quiet", "file:///source.git", container.folder]
        subprocess.run(["docker", "exec", name, *clone], check=True)
        yield container
    finally:
        subprocess.run(["docker", "rm", "--force", name], stdout=subprocess.DEVNULL)


def try_machine(machine: Machine, source: Path, tests: str) -> dict[str, Any]:
    """Run everything on one machine and return its row of the report."""
    with running(machine, source) as container:
        make = ["make", *machine.variables.split()]
        doctor_run = container.call(*make, "doctor")
        started = time.monotonic()
        demo_run = container.call(*make, "demo")
        demo_s = time.monotonic() - started
        versions = re.search(r"Postgres ([\d.]+), .* PgBouncer ([\d.]+):", demo_run.stdout)
        python = container.call(".venv/bin/python", "-V")
        psql_run = container.call("bash", "-c", PSQL_SCRIPT.format(make=" ".join(make)))
        started = time.monotonic()
        selection = {"handler": (), "all": ("ALL=1",)}.get(tests, (f"ARGS={tests}",))
        test_run = container.call(
            *make, "test", *selection, "PYTEST_ADDOPTS=--junitxml=/tmp/report.xml"
        )
        test_s = time.monotonic() - started
        report = subprocess.run(
            ["docker", "exec", container.name, "cat", "/tmp/report.xml"],
            capture_output=True,
            text=True,
        )
        counts, reasons = outcomes(report.stdout)
        return {
            "image": machine.image,
            "added": machine.packages,
            "user": "root" if machine.user == "root" else "ordinary",
            "python": python.stdout.split()[-1],
            "postgres": versions[1] if versions else None,
            "pgbouncer": versions[2] if versions else None,
            "doctor_exit": doctor_run.returncode,
            "demo_exit": demo_run.returncode,
            "demo_s": round(demo_s, 1),
            "psql_works": "there are 1000" in psql_run.stdout,
            "tests": tests,
            "test_exit": test_run.returncode,
            "test_s": round(test_s),
            **{name: counts[name] for name in ("passed", "failed", "skipped")},
            "skipped_because": reasons,
            "left_running": container.processes(),
        }


PSQL_SCRIPT = """
{make} run PORT=8123 >/tmp/run.log 2>&1 & run=$!
for _ in $(seq 300); do grep -q ^serving /tmp/run.log && break; sleep 0.2; done
echo "SELECT 'there are ' || count(*) FROM orders;" | {make} psql
kill $run; wait $run; tail -1 /tmp/run.log
"""


def outcomes(junit: str) -> tuple[Counter[str], dict[str, int]]:
    """Count passed, failed and skipped tests, and the reasons for skipping."""
    counts, reasons = Counter[str](), Counter[str]()
    for case in ElementTree.fromstring(junit).iter("testcase") if junit else ():  # noqa: S314  # written by pytest
        skipped = case.find("skipped")
        has_failed = case.find("failure") is not None or case.find("error") is not None
        counts["failed" if has_failed else "passed" if skipped is None else "skipped"] += 1
        if skipped is not None:
            reasons[str(skipped.get("message"))] += 1
    return counts, dict(reasons.most_common())


def is_good(row: dict[str, Any]) -> bool:
    exits_are_zero = row["doctor_exit"] == row["demo_exit"] == row["test_exit"] == 0
    works = exits_are_zero and row["psql_works"] and row["passed"] > 0 and row["failed"] == 0
    return works and not row["left_running"] and row["demo_s"] < 60


def table(rows: dict[str, dict[str, Any]]) -> str:
    """Render the table. A machine without a row was not tried."""
    lines = []
    for name, machine in MACHINES.items():
        added = f" + {machine.packages}" if machine.packages else ""
        user = "root" if machine.user == "root" else "ordinary"
        line = f"| `{machine.image}`{added} | {user} | "
        if row := rows.get(name):
            demo_result = f"{row['demo_s']:.0f} s" if row["demo_exit"] == 0 else "fails"
            names = {"all": "all", "handler": "handler", SERVER_TESTS: "servers"}
            selection = names.get(row["tests"], "selection")
            line += f"{row['python']} | {row['pgbouncer']} | {row['postgres']} | {demo_result} | "
            line += f"{'works' if row['psql_works'] else 'fails'} | {row['passed']} passed, "
            line += f"{row['failed']} failed, {row['skipped']} skipped | {selection} |\n"
        else:
            line += "| | | not tried | not tried | not tried | |\n"
        lines.append(line)
    return TABLE_HEAD + "".join(lines)


def document(text: str, rows: dict[str, dict[str, Any]]) -> str:
    """Replace the table in the text of docs/support.md."""
    before, _, after_begin = text.partition(BEGIN)
    return before + BEGIN + table(rows) + END + after_begin.partition(END)[2]


def main() -> int:
    treat_sigterm_as_sigint()
    names = os.environ.get("MACHINES", "").split() or list(MACHINES)
    if unknown := set(names) - MACHINES.keys():
        print(f"machines: unknown: {', '.join(unknown)}. Choose from {', '.join(MACHINES)}")
        return 2
    if (docker := doctor.docker()).state != "ok":
        print(f"machines: Docker is needed: {docker.detail}")
        return 1
    tried_rows = {}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.git"
        clone = ["git", "clone", "--quiet", "--bare", "--depth=1", f"file://{ROOT}", str(source)]
        subprocess.run(clone, check=True)
        Path(folder).chmod(0o755)
        for name in names:
            print(f"\n=== {name}", flush=True)
            machine = MACHINES[name]
            tests = os.environ.get("TESTS") or "handler"
            tests = machine.tests or (SELECTION if tests == "selection" else tests)
            tried_rows[name] = try_machine(machine, source, tests)
            known = (json.loads(REPORT.read_text()) if REPORT.exists() else {}) | tried_rows
            rows = {key: known[key] for key in MACHINES if key in known}
            REPORT.write_text(json.dumps(rows, indent=1) + "\n")
            DOCUMENT.write_text(document(DOCUMENT.read_text(), rows))
    print(table(tried_rows))
    failed = [name for name, row in tried_rows.items() if not is_good(row)]
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
