"""The tables and figures in the documents, made from the code and the committed reports.

A document marks the place of each with `<!-- begin: NAME -->` and `<!-- end: NAME -->`. `make fmt`
writes them; a test fails where one differs. `docs/support.md` gets its table from `make machines`.
"""

import inspect
import json
import re
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import asyncpg
from asyncpg.exceptions import InvalidCachedStatementError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from handler.warm.errors import CredentialsError
from handler.warm.request_policy import classify
from handler.warm.settings import Settings
from infra.aws import parameters, picture
from infra.aws.verify import changes, connections, operation, serving
from infra.local import ROOT, LabError
from tests.benchmarks import report as benchmarks
from tests.documents import documents, pages
from tests.faults import report as faults

#: Returns the text of a report, by its name.
Read = Callable[[str], str]


def table(head: str, rows: Iterator[str]) -> str:
    columns = head.count("|") + 1
    return "\n".join([f"| {head} |", "|" + "---|" * columns, *rows])


def cell(text: str) -> str:
    return text.replace("|", "\\|")


# --- The settings --------------------------------------------------------------------------------


def comments() -> dict[str, str]:
    """Field of `Settings` → the comment above it, which names the failure that it prevents."""
    found, comment = {}, ""
    for line in inspect.getsource(Settings).splitlines():
        if said := re.match(r"    # (.*)", line):
            comment += f" {said[1]}"
            continue
        if field := re.match(r"    (\w+): .* = Field\($|    (\w+): .* = Field\(.+", line):
            found[field[1] or field[2]] = comment.strip()
        comment = ""
    return found


def settings(_: Read) -> str:
    prevented = comments()

    def rows() -> Iterator[str]:
        for name, field in Settings.model_fields.items():
            variable = field.validation_alias or f"DB_{name.upper()}"
            default = field.default
            if name == "password":
                default = default.get_secret_value()
            shown = "unset" if default in (None, "") else f"`{default}`"
            yield f"| `{variable}` | {shown} | {field.description} | {prevented[name]} |"

    return table("variable | default | allowed | failure it prevents", rows())


# --- Errors --------------------------------------------------------------------------------------


def server(state: str, *messages: str) -> list[BaseException]:
    """What asyncpg raises of each message, in each of the SQLSTATEs."""
    return [
        asyncpg.PostgresError.new({"S": "FATAL", "C": each, "M": message})
        for message in messages
        for each in state.split(", ")
    ]


#: An error for each row of the policy table, in its order of importance to a reader.
SYMPTOMS: list[BaseException] = [
    *server(
        "53300",
        "sorry, too many clients already",
        'too many connections for role "appuser"',
        "remaining connection slots are reserved",
    ),
    *server("08P01", "no more connections allowed (max_client_conn)", "bouncer config error"),
    *server("08P01", "query_wait_timeout", "server login has been failing"),
    *server("08P01", "SASL authentication failed"),
    *server("28P01", "password authentication failed", 'PAM authentication failed for user "a"'),
    *server("28000", "IAM authentication failed for the role a"),
    *server("3D000", 'database "shop" does not exist'),
    *server("08003", "connection was closed in the middle of operation"),
    *server("40P01", "deadlock detected"),
    *server("40001", "could not serialize access due to concurrent update"),
    *server("23505", 'duplicate key value violates unique constraint "a"'),
    *server("23503", 'insert or update on table "a" violates foreign key constraint "b"'),
    *server("23514", 'new row for relation "a" violates check constraint "b"'),
    *server("23502", 'null value in column "a" of relation "b" violates not-null constraint'),
    *server("57014", "canceling statement due to statement timeout"),
    *server("08P01", "query timeout"),
    *server("25006", "cannot execute INSERT in a read-only transaction"),
    *server("25P02", "current transaction is aborted"),
    *server("42P01", 'relation "a" does not exist'),
    *server("42501", "permission denied for table a"),
    *server("53100", "could not extend file: No space left on device"),
    *server("2200H", 'nextval: reached maximum value of sequence "a"'),
    *server("22003", "integer out of range"),
    InvalidCachedStatementError("cached statement plan is invalid"),
    PoolTimeout("QueuePool limit of size 1 overflow 0 reached"),
    ConnectionRefusedError(111, "Connection refused"),
    TimeoutError("TimeoutError"),
    ssl.SSLError(1, "CERTIFICATE_VERIFY_FAILED"),
    ssl.SSLError(1, "CERTIFICATE_VERIFY_FAILED: Missing Authority Key Identifier"),
    ssl.SSLError(1, "TLSV1_ALERT_PROTOCOL_VERSION"),
    ConnectionError("rejected SSL upgrade"),
    CredentialsError("AccessDeniedException"),
    CredentialsError("ResourceNotFoundException"),
    CredentialsError("ExpiredTokenException"),
    CredentialsError("the server asked for the password without SCRAM"),
    CredentialsError("EndpointConnectionError"),
]


def words(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)


def errors(_: Read) -> str:
    def rows() -> Iterator[str]:
        for error in SYMPTOMS:
            failure = classify(error)
            answer = f"{'one retry, then ' if failure.retryable else ''}{failure.status}"
            if failure.retry_after:
                answer += f", `Retry-After: {failure.retry_after}`"
            cause = cell(failure.cause.replace(words(error), "…"))
            yield (
                f"| `{cell(words(error))}` | {failure.sqlstate or ''} | `{failure.name}` "
                f"| {cause} | {cell(failure.hint)} | {answer} |"
            )

    return table("message | SQLSTATE | `failure` | `cause` | `hint` | response", rows())


# --- Reports -------------------------------------------------------------------------------------

ENDINGS = {
    "graceful": "SIGTERM, then `dispose()`",
    "kill": "SIGKILL",
    "freeze": "frozen and never thawed",
    "vanish": "reclaimed without a FIN",
    "no_extension": "no extension, so neither SIGTERM nor `dispose()`",
}


def churn(read: Read) -> str:
    by = {(run["path"], run["ending"]): run for run in json.loads(read("churn.json"))["runs"]}

    def rows() -> Iterator[str]:
        for ending, meaning in ENDINGS.items():
            direct, pooled = by["direct", ending], by["pgbouncer", ending]
            yield (
                f"| `{ending}`: {meaning} | {direct['failed']:,} of {direct['invocations']:,} "
                f"| {direct['held_backends']} | {pooled['failed']} of {pooled['invocations']:,} "
                f"| {pooled['held_backends']}, {pooled['held_clients']} |"
            )

    head = (
        "how execution environments end | direct: failed | connections left "
        "| through PgBouncer: failed | server connections, client slots left"
    )
    return table(head, rows())


def churn_summary(read: Read) -> str:
    report = json.loads(read("churn.json"))
    totals = {
        path: [
            sum(run[name] for run in report["runs"] if run["path"] == path)
            for name in ("failed", "invocations")
        ]
        for path in ("direct", "pgbouncer")
    }
    timeout = report["environment"]["client_idle_timeout_s"]
    return (
        f"{report['sandboxes']} execution environments, which share a Postgres with "
        f"{report['max_connections']} connections, start together and are then\nreplaced by a "
        f"deployment. Connected directly, {totals['direct'][0]:,} of {totals['direct'][1]:,} "
        f"invocations failed. Through\nPgBouncer, {totals['pgbouncer'][0]:,} of "
        f"{totals['pgbouncer'][1]:,} failed ([report](reports/churn.md)). These are totals over "
        f"{len(report['runs']) // 2} runs, one\nfor each way in which an execution environment "
        f"can end. To shorten the runs, `client_idle_timeout` was {timeout} s\ninstead of 300 s."
    )


def fault_matrix(read: Read) -> str:
    return faults.table(faults.read(read("faults.json"))).strip()


def bench(read: Read) -> str:
    return "\n".join(benchmarks.summary(benchmarks.read(read("bench.json"))))


def stages(read: Read) -> str:
    return "\n".join(benchmarks.stages(benchmarks.read(read("bench.json"))))


def targets(read: Read) -> str:
    return "\n".join(benchmarks.target_table(benchmarks.read(read("bench.json"))))


def under_load(read: Read) -> str:
    return "\n".join(benchmarks.under_load(benchmarks.read(read("bench.json"))))


# --- AWS and the log line ------------------------------------------------------------------------


def aws_parameters(_: Read) -> str:
    def rows() -> Iterator[str]:
        for name, each in parameters.declared().items():
            default = str(each.get("Default", ""))
            default = f"`{default}`" if default else ""
            values = [f"`{one}`" for one in each.get("AllowedValues", [])]
            allowed = f" ({', '.join(values)})" if values else ""
            text = " ".join(str(each["Description"]).split())
            yield f"| `{name}` | {default} | {cell(text)}{allowed} |"

    return table("parameter | default | meaning", rows())


def architecture(_: Read) -> str:
    return f"```mermaid\n{picture.picture()}```"


def verify(_: Read) -> str:
    def rows() -> Iterator[str]:
        always = [*serving.CHECKS, connections.CLOSED, connections.BUDGET, connections.PINNED]
        for check in [*always, operation.SCHEDULED]:
            yield f"| `{check.name}` | {check.claim} |"
        yield f"| `alarm …`, one for each | {operation.ALARM_CLAIM} |"
        for check in changes.CHECKS:
            yield f"| `{check.name}`, with `CHANGES=1` | {check.claim} |"

    return table("row | claim", rows())


def log_fields(_: Read) -> str:
    schema: dict[str, Any] = json.loads((ROOT / "docs/log-line.schema.json").read_text())

    def rows() -> Iterator[str]:
        for name, each in schema["properties"].items():
            required = "yes" if name in schema["required"] else ""
            yield f"| `{name}` | {required} | {cell(each['description'])} |"

    return table("field | always | meaning", rows())


def decision_records(_: Read) -> str:
    records = pages("docs/decisions").items()
    return "\n".join(f"- [{title}](decisions/{path.name})" for title, path in records)


TABLES: dict[str, Callable[[Read], str]] = {
    "architecture": architecture,
    "bench": bench,
    "bench stages": stages,
    "bench targets": targets,
    "bench under load": under_load,
    "churn": churn,
    "churn summary": churn_summary,
    "decisions": decision_records,
    "errors": errors,
    "faults": fault_matrix,
    "log fields": log_fields,
    "parameters": aws_parameters,
    "settings": settings,
    "verify": verify,
}


# --- Writing and comparing -----------------------------------------------------------------------

REGION = re.compile(r"(?<=<!-- begin: )([\w ]+)( -->\n).*?(?=\n<!-- end: \1 -->)", re.S)


def generated(text: str, read: Read) -> str:
    """`text` with each marked table as it is made now."""

    def made(found: re.Match[str]) -> str:
        make = TABLES.get(found[1])
        return f"{found[1]}{found[2]}{make(read)}" if make else found[0]

    return REGION.sub(made, text)


def current(report: str) -> str:
    return (ROOT / "reports" / report).read_text()


def committed(report: str) -> str:
    """As in the last commit: `make churn` and others may have written a new one since."""
    kept = subprocess.run(
        ["git", "show", f"HEAD:reports/{report}"], cwd=ROOT, capture_output=True, text=True
    )
    return current(report) if kept.returncode else kept.stdout


def main() -> None:
    for path in documents():
        text = path.read_text()
        new = generated(text, current)
        if new != text:
            path.write_text(new)
            print(f"tables of {path.relative_to(ROOT)} rewritten")


if __name__ == "__main__":
    try:
        main()
    except LabError as error:
        sys.exit(f"warm-engine: {error}")
