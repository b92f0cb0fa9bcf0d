"""`python -m infra.service new DEST NAME` and `… update ROOT`: `make new` and `make update`.

This module checks the arguments and reports each error and conflict in one line. copier renders and
merges the files.
"""

import argparse
import contextlib
import keyword
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import copier
import yaml
from copier.errors import CopierError
from plumbum import ProcessExecutionError

from infra.local import ROOT
from infra.local.signals import treat_sigterm_as_sigint

ANSWERS = ".copier-answers.yml"
#: `unsafe` allows copier to run this repository's `infra.service.rename`.
COPIER_OPTIONS: dict[str, Any] = {"defaults": True, "unsafe": True, "quiet": True}
#: The author of a commit if git does not know the user's name.
NAMELESS_AUTHOR = {
    "GIT_AUTHOR_NAME": "make new",
    "GIT_AUTHOR_EMAIL": "make-new@localhost",
    "GIT_COMMITTER_NAME": "make new",
    "GIT_COMMITTER_EMAIL": "make-new@localhost",
}
#: Names of modules, and of databases that exist in Postgres and PgBouncer.
RESERVED = {
    "app",
    "main",
    "warm",
    "handler",
    "infra",
    "tests",
    "postgres",
    "template1",
    "pgbouncer",
}


class ServiceError(Exception):
    """An error for the user: one line with the problem and, if known, its solution."""


def new(destination: Path, name: str) -> None:
    """Create the service `name` in `destination`, completely or not at all."""
    if keyword.iskeyword(name) or name in RESERVED:
        raise ServiceError(
            f"NAME={name} is reserved: it is a Python keyword, a module of this repository"
            " or an existing database. Choose another, such as NAME=inventory"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise ServiceError(
            f"NAME={name} is not a valid name for a Python module and a database. Start with a"
            " letter, and use up to 31 lower-case letters, digits and underscores: NAME=inventory"
        )
    if not str(destination) or destination == Path():
        raise ServiceError("DEST is missing: make new DEST=../inventory NAME=inventory")
    destination = destination.resolve()
    if destination.is_relative_to(ROOT):
        raise ServiceError(f"DEST={destination} is in this repository. Name a folder beside it")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ServiceError(f"DEST={destination} exists and is not empty")
    if not destination.parent.is_dir():
        raise ServiceError(f"{destination.parent} does not exist. Create it, or use another DEST")
    # Next to the destination, so that the relative path to this repository stays valid.
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise ServiceError(
            f"{destination.parent} is not writable ({error.strerror}). Change its permissions, or"
            " use a DEST in another folder"
        ) from None
    source = _git(ROOT, "remote", "get-url", "origin", check=False)
    try:
        with contextlib.chdir(draft):
            copier.run_copy(
                os.path.relpath(ROOT, draft),
                ".",
                data={"name": name, "source": source},
                vcs_ref=_current_commit(),
                overwrite=True,
                **COPIER_OPTIONS,
            )
            if not _git(draft, "rev-parse", "--show-toplevel", check=False):
                _git(draft, "init", "--quiet", "--initial-branch=main")
                _git(draft, "add", "--all")
                _git(draft, "commit", "--quiet", "--message", f"Create the service {name}")
        draft.chmod(0o755)
        draft.rename(destination)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    path = os.path.relpath(destination)
    print(f"created    {path}: now `cd {path}`, then `make demo` and `make test`")


def update(root: Path) -> int:
    """Merge this repository's changes since the creation or last update of the service in `root`.

    Return 1 if there are conflicts: lines that both sides changed, or files that the service
    changed and the newer version moved or removed.
    """
    if not (root / ANSWERS).is_file():
        raise ServiceError(f"ROOT={root} has no {ANSWERS}: it was not made by `make new`")
    source = _recorded(root, "_src_path")
    if (root / source).resolve() != ROOT:
        raise ServiceError(
            f"{root} was made from a clone in {source}, but this clone is {ROOT}. Run `make update`"
            f" there, or commit another _src_path in {ANSWERS}"
        )
    with contextlib.chdir(root):
        before, own_commit = _recorded(root, "_commit"), _git(root, "rev-parse", "--short", "HEAD")
        copier.run_update(
            ".",
            vcs_ref=_current_commit(),
            overwrite=True,
            conflict="inline",
            **COPIER_OPTIONS,
        )
    conflicts = changed_paths(root, "--diff-filter=U")
    lost = _lost_changes(root, before)
    after = _recorded(root, "_commit")
    if after == before:
        print(f"already at {after}")
    else:
        review = "Resolve the conflicts, then review" if conflicts or lost else "Review"
        print(
            f"updated    {before} → {after}. {review} the changes (`git add -A && git diff"
            " --cached`), test and commit them"
        )
    if _git(ROOT, "status", "--porcelain"):
        print(
            f"note       uncommitted changes in {ROOT} were not included: commit them there first"
        )
    for path in conflicts:
        print(f"conflict   {path}: edit the marked lines, then `git add {shlex.quote(path)}`")
    for path in lost:
        own_version = shlex.quote(f"{own_commit}:./{path}")
        print(
            f"conflict   {path}: changed here, moved or removed there; see your version with"
            f" `git show {own_version}`"
        )
    return 1 if conflicts or lost else 0


def changed_paths(root: Path, *options: str) -> list[str]:
    """Return the paths, relative to `root`, that `git diff` lists."""
    output = _git(root, "diff", "--name-only", "-z", "--relative", *options)
    return [path for path in output.split("\0") if path]


def _lost_changes(root: Path, version: str) -> list[str]:
    """Return the files that the update removed although the service had changed them.

    copier does not report them. `version`: the one before the update.
    """
    removed = changed_paths(root, "--no-renames", "--diff-filter=D", "HEAD")
    if not removed:
        return []
    answers = yaml.safe_load(_git(root, "show", f"HEAD:./{ANSWERS}"))
    with tempfile.TemporaryDirectory() as rendered:
        copier.run_copy(
            str(ROOT),
            rendered,
            data={key: value for key, value in answers.items() if not key.startswith("_")},
            vcs_ref=version,
            **COPIER_OPTIONS,
        )
        return [
            path
            for path in removed
            if not (original := Path(rendered, path)).exists()
            or _git(root, "rev-parse", f"HEAD:./{path}")
            != _git(root, "hash-object", "--no-filters", str(original))
        ]


def _current_commit() -> str:
    """Return the checked-out commit. Uncommitted changes could not be reproduced by an update."""
    return _git(ROOT, "rev-parse", "HEAD")


def _recorded(root: Path, name: str) -> str:
    """Return the version (`_commit`) or the clone (`_src_path`) that the service recorded."""
    match = re.search(rf"^{name}: (.*)$", (root / ANSWERS).read_text(), re.M)
    # YAML quotes a commit whose short hash consists of digits.
    return match[1].strip("'") if match else "unknown"


def _git(folder: Path, *arguments: str, check: bool = True) -> str:
    """Return the output of git. If it fails: raise ServiceError, or return "" without `check`."""
    environment = dict(os.environ)
    identities = ("GIT_AUTHOR_IDENT", "GIT_COMMITTER_IDENT")
    if arguments[0] == "commit" and not all(
        _git(folder, "var", i, check=False) for i in identities
    ):
        environment = NAMELESS_AUTHOR | environment
    result = subprocess.run(
        ["git", "-C", str(folder), *arguments],
        env=environment,
        capture_output=True,
        text=True,
    )
    if result.returncode == 0:
        return result.stdout.strip()
    if check:
        reason = _last_line(result.stderr or result.stdout)
        raise ServiceError(f"git {arguments[0]} failed in {folder}: {reason}")
    return ""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" |")]
    return lines[-1] if lines else "no output"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.service", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("new")
    command.add_argument("destination", type=Path)
    command.add_argument("name")
    command = commands.add_parser("update")
    command.add_argument("root", type=Path)
    arguments = parser.parse_args()
    treat_sigterm_as_sigint()
    try:
        if not shutil.which("git"):
            raise ServiceError("git is not installed, and versions cannot be determined without it")
        _git(ROOT, "rev-parse", "--show-toplevel")
        if arguments.command == "new":
            new(arguments.destination, arguments.name)
            return 0
        return update(arguments.root.resolve())
    except ProcessExecutionError as error:
        print(f"{arguments.command}: {_last_line(error.stderr)}", file=sys.stderr)
    except (ServiceError, CopierError, ValueError, OSError) as error:
        print(f"{arguments.command}: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
