"""`make deploy`: from this checkout to a working URL, in one account and region.

`python -m infra.aws.deploy [PARAMETER=VALUE …]`, parameters being template.yaml's. Owns the order:
budget, repositories, certificate, images, stack. Leaves to SAM what CloudFormation does, and to the
environment (AWS_PROFILE, AWS_REGION) who and where; `STACK` names another stack than warm-engine.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import subprocess
import sys
import urllib.request
from dataclasses import fields
from pathlib import Path
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, NoRegionError

from infra.aws import budget, certificate, template_file

FOLDER = template_file.FOLDER
ROOT = FOLDER.parents[1]
TRUST = FOLDER / ".trust"
#: The name in PgBouncer's certificate; pooler.yaml has a record for it.
POOLER = "pooler.warm-engine.internal"
#: Amazon's own pages of public certificates: of RDS, and of RDS Proxy.
RDS_CA = "https://truststore.pki.rds.amazonaws.com/{region}/{region}-bundle.pem"
PROXY_CA = "https://www.amazontrust.com/repository/AmazonRootCA1.pem"
#: What this module finds out by itself.
OURS = {"FunctionImage", "MigrateImage", "PoolerImage", "PoolerTlsSecret", "S3PrefixList"}
OURS |= {"Release", "BudgetedConnections"}
#: Image → where it is built, and as which target.
IMAGES = {
    "function": ["--file", "handler/Dockerfile", "--target", "function", "."],
    "migrate": ["--file", "handler/Dockerfile", "--target", "migrate", "."],
    "pooler": ["pgbouncer"],
}


class DeployError(Exception):
    """What stands in the way, for a person to read: one line."""


def main() -> int:
    try:
        deploy(parse(sys.argv[1:]), os.environ.get("STACK") or "warm-engine")
    except NoRegionError:
        return fail("no AWS region. Set one: export AWS_REGION=eu-central-1")
    except NoCredentialsError:
        return fail(
            "no AWS credentials. Set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; "
            "with single sign-on run `aws sso login` first"
        )
    except (DeployError, ValueError, BotoCoreError, ClientError, OSError) as error:
        return fail(str(error))
    except KeyboardInterrupt:
        return 130
    return 0


def fail(reason: str) -> int:
    print(f"deploy: {reason}", file=sys.stderr)
    return 1


def parse(words: list[str]) -> dict[str, str]:
    """The parameters on the command line. Raises DeployError for one that is not to be set."""
    parameters = template_file.read("template")["Parameters"].keys() - OURS
    chosen = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or name not in parameters:
            raise DeployError(f"{word!r} is not NAME=VALUE. Names: {', '.join(sorted(parameters))}")
        chosen[name] = value
    return chosen


def deploy(chosen: dict[str, str], stack: str) -> None:
    names = {field.name for field in fields(budget.Budget)}
    sized = budget.from_templates(**{k: v for k, v in chosen.items() if k in names})
    if not budget.fits(sized):
        raise DeployError(f"the connection budget does not fit:\n{budget.table(sized)}")
    session = boto3.Session()
    who = session.client("sts").get_caller_identity()
    print(f"account {who['Account']}, {session.region_name}, as {who['Arn']}", flush=True)
    run("docker", "version", "--format", "docker {{.Server.Version}}")

    registry = f"{stack}-registry"
    sam("registry", registry)
    repositories = outputs(session, registry)
    parameters = {**chosen, "BudgetedConnections": budgeted(sized)}
    parameters["S3PrefixList"] = s3_prefix_list(session)
    parameters["PoolerTlsSecret"] = trust(session, f"{stack}/pooler-tls")
    architecture = chosen.get("Architecture", "x86_64")
    for name in IMAGES:
        repository = repositories[name.capitalize()]
        parameters[f"{name.capitalize()}Image"] = push(session, name, repository, architecture)
    parameters["Release"] = release(parameters)
    sam("template", stack, repositories["Function"], **parameters)
    print(f"\n{outputs(session, stack)['Url']}/orders/1")


def budgeted(sized: budget.Budget) -> str:
    """The connections that the database may have before an alarm rings."""
    return str(budget.limits(sized)[-1].of(sized)[1])


def release(parameters: dict[str, str]) -> str:
    """Another value for other parameters or templates, so that a version is published for them."""
    said = hashlib.sha256(json.dumps(parameters, sort_keys=True).encode())
    for path in sorted(FOLDER.glob("*.yaml")):
        said.update(path.read_bytes())
    return said.hexdigest()


def s3_prefix_list(session: boto3.Session) -> str:
    name = f"com.amazonaws.{session.region_name}.s3"
    found = session.client("ec2").describe_managed_prefix_lists(
        Filters=[{"Name": "prefix-list-name", "Values": [name]}]
    )["PrefixLists"]
    if not found:
        raise DeployError(f"this region has no prefix list {name}")
    return str(found[0]["PrefixListId"])


def trust(session: boto3.Session, name: str) -> str:
    """Make PgBouncer's certificate, once, and fill `.trust` with every CA. Returns its ARN."""
    secrets = session.client("secretsmanager")
    try:
        found = secrets.get_secret_value(SecretId=name)
        arn, made = found["ARN"], json.loads(found["SecretString"])
    except secrets.exceptions.ResourceNotFoundException:
        made = certificate.make(POOLER)
        arn = secrets.create_secret(Name=name, SecretString=json.dumps(made))["ARN"]
    TRUST.mkdir(exist_ok=True)
    (TRUST / "pooler.pem").write_text(made["ca"])
    fetch(RDS_CA.format(region=session.region_name), TRUST / "rds.pem")
    fetch(PROXY_CA, TRUST / "proxy.pem")
    return str(arn)


def fetch(url: str, path: Path) -> None:
    """A file of certificates. One put there by hand stays: not every network lets this through."""
    if path.exists():
        return
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:  # noqa: S310  # https, ours
            text = answer.read()
    except OSError as error:
        raise DeployError(f"{url} cannot be read: {error}. Put it at {path}") from None
    if not text.startswith(b"-----BEGIN CERTIFICATE-----"):
        raise DeployError(f"{url} is no certificate. Put it at {path}")
    path.write_bytes(text)


def push(session: boto3.Session, name: str, repository: str, architecture: str) -> str:
    """Build an image, push it under a tag that tells its content. Returns its name by digest."""
    # Lambda takes no list of manifests, which is what an attestation makes of an image.
    build = ["docker", "build", "--quiet", "--provenance=false", "--platform"]
    build.append({"x86_64": "linux/amd64", "arm64": "linux/arm64"}[architecture])
    print(f"image {name} …", flush=True)
    local = f"warm-engine/{name}"
    run(*build, "--tag", local, *IMAGES[name])
    argument = f"{name.upper()}={local}"
    said = run(*build, "--target", name, "--build-arg", argument, "infra/aws", quiet=True)
    identity = said.strip()
    tag = identity.removeprefix("sha256:")[:32]
    ecr = session.client("ecr")
    wanted: Any = {"repositoryName": f"warm-engine/{name}", "imageIds": [{"imageTag": tag}]}
    try:
        ecr.describe_images(**wanted)
    except ecr.exceptions.ImageNotFoundException:
        token = ecr.get_authorization_token()["authorizationData"][0]["authorizationToken"]
        user, _, password = base64.b64decode(token).decode().partition(":")
        host = repository.partition("/")[0]
        run("docker", "login", "--username", user, "--password-stdin", host, said=password)
        run("docker", "tag", identity, f"{repository}:{tag}")
        run("docker", "push", "--quiet", f"{repository}:{tag}")
    digest = ecr.describe_images(**wanted)["imageDetails"][0]["imageDigest"]
    return f"{repository}@{digest}"


def sam(template: str, stack: str, repository: str = "", **parameters: str) -> None:
    """Create or update a stack, and wait for it."""
    overrides = [f"{name}={value}" for name, value in parameters.items()]
    run(
        *(str(Path(sys.executable).with_name("sam")), "deploy", "--stack-name", stack),
        *("--template-file", str(FOLDER / f"{template}.yaml")),
        *("--resolve-s3", "--no-confirm-changeset", "--no-fail-on-empty-changeset"),
        *("--capabilities", "CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"),
        *(("--image-repository", repository) if repository else ()),
        *(("--parameter-overrides", *overrides) if overrides else ()),
    )


def outputs(session: boto3.Session, stack: str) -> dict[str, str]:
    found = session.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
    return {each["OutputKey"]: each["OutputValue"] for each in found["Outputs"]}


def run(*command: str, said: str | None = None, quiet: bool = False) -> str:
    """Run a program in the checkout, and its output with ours unless `quiet`. Returns that."""
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            input=said,
            stdout=subprocess.PIPE if quiet else None,
            text=True,
            check=True,
            env={**os.environ, "SAM_CLI_TELEMETRY": "0"},
        )
    except FileNotFoundError:
        raise DeployError(f"there is no {command[0]} here: images are built with Docker") from None
    except subprocess.CalledProcessError as error:
        name = Path(command[0]).name
        raise DeployError(f"`{name} {command[1]}` left with {error.returncode}") from None
    return done.stdout or ""


if __name__ == "__main__":
    sys.exit(main())
