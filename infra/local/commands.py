"""The command line of the lab: `python -m infra.local --help`."""

import argparse
import dataclasses
import os
import shlex
import socket
import subprocess
import sys
from pathlib import Path

from handler.warm.settings import SettingsError
from infra.database.check import differences
from infra.local import LabError, console, demo, postgres, service, signals, stack, status


def psql(_: argparse.Namespace) -> int:
    endpoints = stack.read_endpoints()
    os.environ |= {
        "PGHOST": endpoints["postgres"]["host"],
        "PGPORT": str(endpoints["postgres"]["port"]),
        "PGUSER": endpoints["admin"]["user"],
        "PGPASSWORD": endpoints["admin"]["password"],
        "PGDATABASE": endpoints["env"]["DB_NAME"],
    }
    program = str(postgres.psql())
    os.execv(program, [program])  # noqa: S606  # psql needs its path in argv[0]


def env(arguments: argparse.Namespace) -> int:
    for name, value in stack.read_endpoints()["owner" if arguments.owner else "env"].items():
        print(f"export {name}={shlex.quote(value)}")
    return 0


def check(_: argparse.Namespace) -> int:
    endpoints = stack.read_endpoints()
    admin = endpoints["postgres"] | endpoints["admin"]
    changes = signals.run_async(differences, admin, endpoints["env"]["DB_NAME"])
    for line in changes:
        print(line)
    return 1 if changes else 0


def churn(arguments: argparse.Namespace) -> int:
    from infra.local.churn.command import churn  # takes a second to import matplotlib

    return churn(service.find(arguments.root))


def owner(arguments: argparse.Namespace) -> int:
    """Run the service's interpreter with the owner's login to a new, migrated database."""
    own = service.find(arguments.root)
    # Without sample rows, because their table may not exist until the command creates it.
    migrate = [word for word in own.migrate if word != "--sample"]
    with stack.Stack(service=dataclasses.replace(own, migrate=migrate)) as running:
        environment = {**os.environ, **running.owner_environment()}
        command = [own.python, *arguments.words]
        return subprocess.run(command, cwd=own.root, env=environment).returncode


def serve(arguments: argparse.Namespace) -> int:
    from infra.local.serve import serve

    return serve(service.find(arguments.root))


def examine(_: argparse.Namespace) -> int:
    from infra.local.examine.command import examine

    return examine()


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
        return demo.run(listener, service.find(arguments.root))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.local", description="The lab.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, text in (
        ("demo", lambda args: demo.demo(service.find(args.root)), "one request, cold and warm"),
        ("churn", churn, "exhaust Postgres with a fleet, directly and through PgBouncer"),
        ("examine", examine, "what a function does to its database, property by property"),
        ("run", run, "serve on HTTP until Ctrl-C"),
        ("serve", serve, "a stack and a fleet for the pytest plugin, on stdin and stdout"),
        ("owner", owner, "run Python with the owner's login to a migrated database"),
        ("psql", psql, "psql on the Postgres of the running stack"),
        ("check", check, "check the roles of the running stack for changes"),
        ("status", lambda args: status.status(args.stack), "connections and locks"),
        ("console", lambda args: console.prompt(args.stack), "a prompt on PgBouncer's console"),
        ("env", env, "DB_* of the running stack, for eval in a shell"),
    ):
        commands.add_parser(name, help=text, description=text).set_defaults(function=function)
    for name in ("demo", "run", "churn", "serve", "owner"):
        text = "the folder of another service (default: the sample)"
        commands.choices[name].add_argument("--root", type=Path, help=text)
    for name in ("status", "console"):
        text = "which one, if both are running"
        commands.choices[name].add_argument("--stack", choices=("run", "up"), help=text)
    commands.choices["owner"].add_argument("words", nargs="+", metavar="WORD")
    text = "the owner's, for Alembic"
    commands.choices["env"].add_argument("--owner", action="store_true", help=text)
    text = "on 127.0.0.1 (default: 8000)"
    commands.choices["run"].add_argument("--port", type=port, default=8000, help=text)
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
        raise argparse.ArgumentTypeError("ports are 1 to 65535")
    return number
