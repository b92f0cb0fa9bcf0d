"""`python -m infra.service new DEST NAME` and `… update ROOT`: `make new` and `make update`.

Owns what is checked before, and one line for each fault. Leaves rendering and merging to copier.
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

import copier
import yaml
from copier.errors import CopierError
from plumbum import ProcessExecutionError

from infra.local import ROOT
from infra.local.signals import treat_sigterm_as_sigint

ANSWERS = ".copier-answers.yml"
#: Modules of the handler, and databases that Postgres and PgBouncer have already.
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
    """What stands in the way: one line with the fault and what to do."""


def new(destination: Path, name: str) -> None:
    """Write the service `name` into `destination`, as a whole or not at all."""
    if keyword.iskeyword(name) or name in RESERVED:
        raise ServiceError(
            f"NAME={name} is reserved: a Python keyword, a module of the handler or a database that"
            " exists already. Choose another, as in NAME=inventory"
        )
    if not re.fullmatch(r"[a-z][a-z0-9_]{0,30}", name):
        raise ServiceError(
            f"NAME={name} is no name for a Python module and a database. Use lower-case letters,"
            " digits and _, up to 31, as in NAME=inventory"
        )
    if not str(destination) or destination == Path():
        raise ServiceError("DEST is missing: make new DEST=../inventory NAME=inventory")
    destination = destination.resolve()
    if destination.is_relative_to(ROOT):
        raise ServiceError(f"DEST={destination} is in this repository. Name a folder beside it")
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ServiceError(f"DEST={destination} exists and is not empty")
    if not destination.parent.is_dir():
        raise ServiceError(f"{destination.parent} does not exist. Make it, or name another DEST")
    # Beside it, so that the path from there to this repository is the same.
    try:
        draft = Path(tempfile.mkdtemp(prefix=f".{destination.name}-", dir=destination.parent))
    except OSError as error:
        raise ServiceError(
            f"{destination.parent} is not writable ({error.strerror}). Change its permissions, or"
            " name a DEST in another folder"
        ) from None
    try:
        with contextlib.chdir(draft):
            copier.run_copy(
                os.path.relpath(ROOT, draft),
                ".",
                data={
                    "name": name,
                    "source": _git(ROOT, "remote", "get-url", "origin", check=False),
                },
                vcs_ref=_version(),
                defaults=True,
                overwrite=True,
                unsafe=True,  # it runs `infra.service.rename` of this repository
                quiet=True,
            )
            if not _git(draft, "rev-parse", "--show-toplevel", check=False):
                _git(draft, "init", "--quiet", "--initial-branch=main")
                _git(draft, "add", "--all")
                _git(draft, "commit", "--quiet", "--message", f"The service {name}, as made")
        draft.chmod(0o755)
        draft.rename(destination)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    shown = os.path.relpath(destination)
    print(f"made       {shown}: now `cd {shown}`, then `make demo` and `make test`")


def update(root: Path) -> int:
    """Merge what changed since the version that `root` was made from.

    Return 1 if there are conflicts: lines that both changed, or a file that was changed here and
    moved or removed there.
    """
    if not (root / ANSWERS).is_file():
        raise ServiceError(f"ROOT={root} has no {ANSWERS}: it was not made by `make new`")
    source = _answer(root, "_src_path")
    if (root / source).resolve() != ROOT:
        raise ServiceError(
            f"{root} was made from a clone in {source}, and this is {ROOT}. Run it there, or commit"
            f" another _src_path in {ANSWERS}"
        )
    with contextlib.chdir(root):
        before, committed = _answer(root, "_commit"), _git(root, "rev-parse", "--short", "HEAD")
        copier.run_update(
            ".",
            vcs_ref=_version(),
            defaults=True,
            overwrite=True,
            unsafe=True,
            conflict="inline",
            quiet=True,
        )
    conflicts = changed_paths(root, "--diff-filter=U")
    lost = _lost_changes(root, before)
    after = _answer(root, "_commit")
    if after == before:
        print(f"already at {after}")
    else:
        look = "Solve the conflicts, then look" if conflicts or lost else "Look"
        print(
            f"updated    {before} → {after}. {look} at it (`git add -A && git diff --cached`),"
            " test it, commit it"
        )
    if _git(ROOT, "status", "--porcelain"):
        print(f"note       uncommitted changes in {ROOT} were not brought: commit them there first")
    for path in conflicts:
        print(f"conflict   {path}: solve it between its marks, then `git add {shlex.quote(path)}`")
    for path in lost:
        shown = shlex.quote(f"{committed}:./{path}")
        print(
            f"conflict   {path}: changed here, moved or removed there; your version is in"
            f" `git show {shown}`"
        )
    return 1 if conflicts or lost else 0


def changed_paths(root: Path, *words: str) -> list[str]:
    """Return the paths, relative to `root`, that `git diff` lists."""
    listed = _git(root, "diff", "--name-only", "-z", "--relative", *words)
    return [path for path in listed.split("\0") if path]


def _lost_changes(root: Path, version: str) -> list[str]:
    """Return the files that an update removed although they differ from `version`.

    copier drops such a file's changes without a word.
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
            defaults=True,
            unsafe=True,
            quiet=True,
        )
        return [
            path
            for path in removed
            if not (original := Path(rendered, path)).exists()
            or _git(root, "rev-parse", f"HEAD:./{path}")
            != _git(root, "hash-object", "--no-filters", str(original))
        ]


def _version() -> str:
    """The commit that is checked out: what was changed since could not be found again."""
    return _git(ROOT, "rev-parse", "HEAD")


def _answer(root: Path, name: str) -> str:
    """What is recorded of a service: its version, `_commit`, and from where, `_src_path`."""
    found = re.search(rf"^{name}: (.*)$", (root / ANSWERS).read_text(), re.M)
    return found[1] if found else "unknown"


def _git(folder: Path, *words: str, check: bool = True) -> str:
    """What git printed; nothing if it failed and was allowed to."""
    # Whoever has no name yet can commit all the same.
    nobody = {"GIT_AUTHOR_NAME": "make new", "GIT_AUTHOR_EMAIL": "make-new@localhost"}
    nobody |= {"GIT_COMMITTER_NAME": "make new", "GIT_COMMITTER_EMAIL": "make-new@localhost"}
    done = subprocess.run(
        ["git", "-C", str(folder), *words],
        env={**nobody, **os.environ} if "commit" in words else None,
        capture_output=True,
        text=True,
    )
    if done.returncode and check:
        fault = _line(done.stderr or done.stdout)
        raise ServiceError(f"git {words[0]} failed in {folder}: {fault}")
    return done.stdout.strip() if not done.returncode else ""


def _line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip(" |")]
    return lines[-1] if lines else "no reason given"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m infra.service", description=__doc__)
    tasks = parser.add_subparsers(dest="task", required=True)
    task = tasks.add_parser("new")
    task.add_argument("destination", type=Path)
    task.add_argument("name")
    task = tasks.add_parser("update")
    task.add_argument("root", type=Path)
    arguments = parser.parse_args()
    treat_sigterm_as_sigint()
    try:
        if not shutil.which("git"):
            raise ServiceError("git is not installed, and versions cannot be told without it")
        _git(ROOT, "rev-parse", "--show-toplevel")
        if arguments.task == "new":
            new(arguments.destination, arguments.name)
            return 0
        return update(arguments.root.resolve())
    except ProcessExecutionError as error:
        print(f"{arguments.task}: {_line(error.stderr)}", file=sys.stderr)
    except (ServiceError, CopierError, ValueError, OSError) as error:
        print(f"{arguments.task}: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 1


if __name__ == "__main__":
    sys.exit(main())
