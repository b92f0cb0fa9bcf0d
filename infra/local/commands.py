"""The laboratory on the command line: `python -m infra.local --help`."""

import argparse
import os
import shlex
import socket
import sys

from handler.settings import SettingsError
from infra.local import LabError, demo, postgres, stack


def psql(_: argparse.Namespace) -> int:
    up = stack.read_endpoints()
    database = up["env"]["DB_NAME"]
    os.environ |= {
        "PGHOST": up["postgres"]["host"],
        "PGPORT": str(up["postgres"]["port"]),
        "PGUSER": up["admin"]["user"],
        "PGPASSWORD": up["admin"]["password"],
        "PGDATABASE": database,
    }
    os.execv(postgres.binaries() / "psql", ["psql"])  # noqa: S606  # becomes psql


def env(_: argparse.Namespace) -> int:
    for name, value in stack.read_endpoints()["env"].items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def churn(_: argparse.Namespace) -> int:
    from infra.local.churn.command import churn  # draws: a second to import

    return churn()


def run(arguments: argparse.Namespace) -> int:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", arguments.port))
        except OSError as error:
            raise LabError(
                f"port {arguments.port} on 127.0.0.1: {error.strerror}. "
                f"Choose another: make run PORT={arguments.port + 1}"
            ) from None
        return demo.run(listener)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The laboratory.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("demo", lambda _: demo.demo(), "one order, cold and warm; ends by itself"),
        ("churn", churn, "exhaust Postgres with a churning fleet, and see PgBouncer prevent it"),
        ("run", run, "serve on HTTP until Ctrl-C"),
        ("psql", psql, "a prompt on the Postgres of the stack that is up"),
        ("env", env, "DB_* of the stack that is up, for eval in a shell"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.set_defaults(function=function)
        if name == "run":
            command.add_argument(
                "--port", type=port, default=8000, help="on 127.0.0.1 (default: 8000)"
            )
    arguments = parser.parse_args()
    try:
        return int(arguments.function(arguments))
    except (LabError, SettingsError) as error:
        print(f"warm-engine: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"warm-engine: {error.strerror or error}: {error.filename}", file=sys.stderr)
        return 1


def port(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 65535:
        raise argparse.ArgumentTypeError("1 to 65535 are ports")
    return number
