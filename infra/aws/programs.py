"""Runs Docker and SAM as child processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from infra.aws import template_file
from infra.aws.account import OperatorError

ROOT = template_file.FOLDER.parents[1]


def run(*command: str, stdin: str | None = None, quiet: bool = False) -> str:
    """Run a program in the checkout. Print its output or, if `quiet`, return it.

    Raises OperatorError if it fails or is not installed.
    """
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            input=stdin,
            stdout=subprocess.PIPE if quiet else None,
            text=True,
            check=True,
            env={**os.environ, "SAM_CLI_TELEMETRY": "0"},
        )
    except FileNotFoundError:
        raise OperatorError(f"{command[0]} is not installed. Install it") from None
    except subprocess.CalledProcessError as error:
        name = Path(command[0]).name
        raise OperatorError(
            f"`{name} {command[1]}` failed with status {error.returncode}; see its output above"
        ) from None
    return done.stdout or ""


def _sam() -> str:
    return str(Path(sys.executable).with_name("sam"))


def package(template: str, prefix: str, region: str, output: Path) -> None:
    """Upload the nested templates, and write a template that refers to them to `output`."""
    run(
        *(_sam(), "package", "--template-file", str(template_file.FOLDER / f"{template}.yaml")),
        *("--resolve-s3", "--s3-prefix", prefix, "--region", region),
        *("--output-template-file", str(output)),
        quiet=True,
    )


def sam(template: str, stack: str, region: str, repository: str = "", **parameters: str) -> None:
    """Create or update a stack, and wait until that has finished."""
    with tempfile.TemporaryDirectory() as folder:
        # In a file: on the command line SAM rejects empty values and splits values at spaces. JSON
        # is valid YAML, but SAM does not accept the extension .json.
        file = Path(folder) / "parameters.yaml"
        file.write_text(json.dumps(parameters))
        run(
            *(_sam(), "deploy", "--stack-name", stack),
            *("--region", region),
            *("--template-file", str(template_file.FOLDER / f"{template}.yaml")),
            # SAM's bucket is shared by all applications of a region.
            *("--resolve-s3", "--s3-prefix", stack),
            *("--no-confirm-changeset", "--no-fail-on-empty-changeset"),
            *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"),
            # CloudFormation's own role, if the deployer may not create resources.
            *(("--role-arn", role) if (role := os.environ.get("CLOUDFORMATION_ROLE")) else ()),
            *(("--image-repository", repository) if repository else ()),
            *(("--parameter-overrides", f"file://{file}") if parameters else ()),
        )
