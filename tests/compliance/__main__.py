"""`make compliance`: SQLAlchemy's own tests on its dialect and on the handler's, direct and pooled.

The wheel contains `sqlalchemy.testing.suite` alone. The PostgreSQL dialect's tests, and the
requirements that declare a database's features, are in the source distribution of the same version,
which pip downloads once.
"""

import os
import subprocess
import sys
import tarfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

import psycopg
import sqlalchemy

from infra.database.roles import LOOKUP
from infra.local import ROOT
from infra.local.pgbouncer import PgBouncer, Upstream
from infra.local.postgres import ADMIN, Postgres
from infra.local.private_directory import private_directory
from infra.local.server import account
from infra.local.system_packages import TOOLS
from tests.compliance.named import NAMED

SOURCE = TOOLS / f"sqlalchemy-{sqlalchemy.__version__}"
TESTS = ["test/dialect/test_suite.py", "test/dialect/postgresql"]
RUNS = [("stock", "direct"), ("ours", "direct"), ("stock pooled", "pooled"), ("ours", "pooled")]
#: Tests that SET a parameter of their session. In transaction pooling it stays on a server
#: connection and affects other tests at random.
SESSION_STATE = (
    "WeCanSetDefaultSchema",
    "test_honor_server_level_iso_setting",
    "test_ensure_version_is_qualified",
    "test_backslash_escapes_detection",
    "test_cross_schema_reflection_four",
    "test_cross_schema_reflection_six",
    "test_cross_schema_reflection_seven",
)
PREPARATION = [
    "CREATE SCHEMA test_schema",
    "CREATE SCHEMA test_schema_2",
    "CREATE EXTENSION hstore",
    "CREATE EXTENSION citext",
    "SET default_text_search_config = 'pg_catalog.english'",
]


class PostgresForTests(Postgres):
    def command(self) -> list[str]:
        return [*super().command(), "-c", "max_prepared_transactions=10"]


def download() -> None:
    """Unpack the tests of the installed version into `.tools`."""
    if SOURCE.exists():
        return
    TOOLS.mkdir(exist_ok=True)
    with TemporaryDirectory(dir=TOOLS) as folder:
        words = ["download", "--quiet", "--no-deps", "--no-binary=:all:", "--dest", folder]
        requirement = f"sqlalchemy=={sqlalchemy.__version__}"
        # pip builds a source's metadata, and would translate all of its Cython for that.
        environment = os.environ | {"DISABLE_SQLALCHEMY_CEXT": "1"}
        pip = [sys.executable, "-m", "pip", *words, requirement]
        subprocess.run(pip, check=True, env=environment)
        [path] = Path(folder).glob("*.tar.gz")
        with tarfile.open(path) as archive:
            archive.extractall(folder, filter="data")
        (Path(folder) / SOURCE.name).rename(SOURCE)


def run(kind: str, path: str, port: int, database: str, password: str, report: Path) -> None:
    address = f"postgresql+asyncpg://{ADMIN}:{password}@127.0.0.1:{port}/{database}"
    words = ["-p", "tests.compliance.dialects", "-o", "addopts=", "-p", "no:cacheprovider"]
    words += ["-q", "--tb=no", f"--junitxml={report}"]
    if path == "pooled":
        words += ["-k", f"not ({' or '.join(SESSION_STATE)})"]
    # -s: SQLAlchemy from the virtual environment, not from beside its tests.
    subprocess.run(
        [*(sys.executable, "-s", "-m", "pytest"), *words, *TESTS, "--dburi", address],
        cwd=SOURCE,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COMPLIANCE": kind},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,  # the report contains the result
    )


def outcome_of(report: Path) -> tuple[set[str], str]:
    """Return the failed tests, named without the database's version, and the counts as text."""
    failed, counts = set(), Counter[str]()
    for case in ElementTree.parse(report).iter("testcase"):  # noqa: S314  # pytest's own
        tags = {child.tag for child in case}
        outcome = "failed" if tags & {"failure", "error"} else "skipped" if tags else "passed"
        counts[outcome] += 1
        if outcome == "failed":
            group = case.get("classname", "").rpartition(".")[2].partition("_postgresql")[0]
            failed.add(f"{group}::{case.get('name')}")
    return failed, ", ".join(f"{counts[name]} {name}" for name in ("passed", "failed", "skipped"))


def main() -> int:
    download()
    with ExitStack() as undo:
        folder = undo.enter_context(private_directory())
        postgres = PostgresForTests(folder, account(), max_connections=100)
        undo.callback(postgres.stop)
        postgres.initialise()
        postgres.start()
        ports = []
        for number, (_, path) in enumerate(RUNS):
            database = f"compliance_{number}"
            with postgres.administrator() as admin:
                admin.execute(f"CREATE DATABASE {database}".encode())
            with psycopg.connect(**postgres.admin, dbname=database, autocommit=True) as admin:
                for statement in PREPARATION:
                    change = statement.replace("SET ", f"ALTER DATABASE {database} SET ")
                    admin.execute(change.encode())
            ports.append(postgres.port)
            if path == "pooled":
                (pgbouncer_folder := folder / database).mkdir()
                account().take_ownership(pgbouncer_folder, 0o700)
                upstream = Upstream(
                    postgres.host, postgres.port, database, LOOKUP, ADMIN, postgres.password
                )
                settings: dict[str, str | int] = {"default_pool_size": 30, "max_db_connections": 0}
                settings |= {"query_timeout": 0, "idle_transaction_timeout": 0}
                # SQLAlchemy's recipe names its statements: a reset removes them, or lets PgBouncer
                # choose another server connection, which does not have them.
                settings["server_reset_query_always"] = 0
                bouncer = PgBouncer(
                    pgbouncer_folder, account(), upstream, tls=False, settings=settings
                )
                undo.callback(bouncer.stop)
                bouncer.start()
                ports[-1] = bouncer.port
        reports = [folder / f"{number}.xml" for number in range(len(RUNS))]
        with ThreadPoolExecutor() as pool:
            for number, (kind, path) in enumerate(RUNS):
                pool.submit(
                    run,
                    kind,
                    path,
                    ports[number],
                    f"compliance_{number}",
                    postgres.password,
                    reports[number],
                )
        outcomes = [outcome_of(report) for report in reports]
    for (kind, path), (_, counts) in zip(RUNS, outcomes, strict=True):
        print(f"{kind.split()[0]:>5} {path:>6}: {counts}")
    regressions = 0
    for stock, ours in ((0, 1), (2, 3)):
        failed_only_in_ours = outcomes[ours][0] - outcomes[stock][0]
        for test in sorted(failed_only_in_ours):
            print(f"{RUNS[ours][1]}: {test}: {NAMED.get(test, 'NOT NAMED')}")
        regressions += len(failed_only_in_ours - NAMED.keys())
    return 1 if regressions else 0


if __name__ == "__main__":
    sys.exit(main())
